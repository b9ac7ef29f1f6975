package interop;

/** What a case expects. */
final class Check {
  private Check() {}

  static void that(boolean holds, String detail, Object... values) {
    if (!holds) {
      throw new AssertionError(String.format(detail, values));
    }
  }

  static void equal(Object got, Object wanted, String what) {
    that(wanted.equals(got), "%s is %s, not %s", what, got, wanted);
  }
}
