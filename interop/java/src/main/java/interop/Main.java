package interop;

import java.util.LinkedHashMap;
import java.util.Map;

/** The script of calls of interop/README.md by grpc-java, over gRPC. */
final class Main {
  private Main() {}

  public static void main(String[] arguments) {
    Map<String, String> given = new LinkedHashMap<>();
    for (int at = 0; at + 1 < arguments.length; at += 2) {
      given.put(arguments[at], arguments[at + 1]);
    }
    try (Client client = new Client(given.get("--grpc-address"), given.get("--key"))) {
      new Script(client).run();
    }
  }
}
