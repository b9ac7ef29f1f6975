package interop;

import inference.v1.Llm.FinishReason;
import inference.v1.Llm.GenerateRequest;
import inference.v1.Llm.Started;
import inference.v1.Llm.StreamGenerateResponse;
import io.grpc.Context;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import java.util.Iterator;

/** One run of a stream, as far as it was read, checked as it comes. */
final class Reading {
  final GenerateRequest request;
  int tokens;
  boolean complete;

  private final Context.CancellableContext context = Context.current().withCancellation();
  private final Iterator<StreamGenerateResponse> stream;
  private final StringBuilder text = new StringBuilder();
  private Started started;
  private int next;
  private FinishReason finish;

  Reading(Client client, GenerateRequest request, long timeoutMs) {
    this.request = request;
    Context before = context.attach();
    try {
      stream = client.llm(timeoutMs).streamGenerate(request);
    } finally {
      context.detach(before);
    }
  }

  /** Reads until so many tokens have come. */
  Reading until(int wanted) {
    while (tokens < wanted) {
      Check.that(stream.hasNext(), "the stream ended after %d tokens", tokens);
      take(stream.next());
    }
    return this;
  }

  /** Reads to the end, which is this. */
  void endsWith(Status.Code code) {
    Status.Code ended = Status.Code.OK;
    try {
      stream.forEachRemaining(this::take);
    } catch (StatusRuntimeException failure) {
      ended = failure.getStatus().getCode();
    }
    Check.equal(ended, code, "the end");
  }

  /** Leaves the call. */
  void leave() {
    context.cancel(null);
  }

  private void take(StreamGenerateResponse message) {
    if (message.hasProgress()) {
      return;
    }
    Check.that(!complete, "a message after Completed");
    Check.equal(message.getPosition(), next, "the position");
    Check.that(started != null ^ message.hasStarted(), "Started is not the first message, or comes again");
    int span = 1;
    switch (message.getEventCase()) {
      case STARTED -> started = message.getStarted();
      case DELTA -> {
        Check.that(finish == null, "tokens after SequenceDone");
        int count = message.getDelta().getTokens().getTokensCount();
        span = Math.max(span, count);
        tokens += count;
        text.append(message.getDelta().getText());
      }
      case SEQUENCE_DONE -> finish = message.getSequenceDone().getFinish().getReason();
      case COMPLETED -> {
        Check.equal(message.getCompleted().getEntries(), message.getPosition() + 1, "entries");
        complete = true;
      }
      default -> throw new AssertionError("a message without an event");
    }
    next += span;
  }

  /** Checks a run that has ended well. */
  void isWhole(int wanted, String wantedText) {
    Check.that(!started.getEpoch().isEmpty(), "no epoch");
    Check.equal(started.getRequestId(), request.getRequestId(), "the request id");
    Check.equal(tokens, wanted, "the number of tokens");
    Check.equal(finish, FinishReason.FINISH_REASON_LENGTH, "the finish");
    Check.that(complete, "no Completed");
    Check.equal(text.toString(), wantedText, "the text");
  }
}
