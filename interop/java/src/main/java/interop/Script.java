package interop;

import com.google.protobuf.Any;
import com.google.protobuf.ByteString;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.rpc.RetryInfo;
import inference.v1.Llm.EmbedInput;
import inference.v1.Llm.EmbedRequest;
import inference.v1.Llm.EmbedResponse;
import inference.v1.Llm.FinishReason;
import inference.v1.Llm.GenerateRequest;
import inference.v1.Llm.GenerateResponse;
import inference.v1.Llm.ListModelsRequest;
import inference.v1.Llm.TokenizeRequest;
import inference.v1.Llm.TokenizeResponse;
import inference.v1.TensorOuterClass.DataType;
import inference.v1.TensorOuterClass.Tensor;
import inference.v1.TensorOuterClass.TensorMeta;
import inference.v1.TensorServiceOuterClass.InferRequest;
import inference.v1.TokenOuterClass.Token;
import inference.v1.TokenOuterClass.TokenBatch;
import io.grpc.Metadata;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.StatusProto;
import io.grpc.stub.MetadataUtils;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.ArrayList;
import java.util.List;
import java.util.UUID;
import java.util.concurrent.atomic.AtomicReference;
import java.util.stream.Collectors;

/** The cases. */
final class Script {
  private static final long NOTICE_TIME_MS = 500;

  private interface Case {
    void run() throws Exception;
  }

  private final Client client;

  Script(Client client) {
    this.client = client;
  }

  void run() {
    report("generate", this::generate);
    report("stream_generate", this::streamGenerate);
    report("stream_cancel", this::streamCancel);
    report("embed", this::embed);
    report("infer", this::infer);
    report("error_details", this::errorDetails);
    report("deadline", this::deadline);
    report("metadata", this::metadata);
    report("compression", this::compression);
  }

  private static void report(String name, Case one) {
    String detail = "";
    boolean ok = true;
    try {
      one.run();
    } catch (Exception | AssertionError failure) {
      ok = false;
      detail = String.valueOf(failure).replace("\\", "\\\\").replace("\"", "\\\"").replaceAll("\\p{Cntrl}", " ");
    }
    System.out.printf("{\"case\": \"%s\", \"ok\": %b, \"detail\": \"%s\"}%n", name, ok, detail);
  }

  /** The usual request, with an id of its own. */
  private static GenerateRequest usual(int tokens) {
    return GenerateRequest.newBuilder()
        .setRequestId("grpc-java-" + UUID.randomUUID())
        .setPrompt("Alice was beginning")
        .setMaxTokens(tokens)
        .setTemperature(0)
        .setIgnoreEos(true)
        .build();
  }

  private Reading open(int tokens, long timeoutMs) {
    return new Reading(client, usual(tokens), timeoutMs);
  }

  private static String joined(TokenBatch tokens) {
    return tokens.getTokensList().stream().map(Token::getText).collect(Collectors.joining());
  }

  private void generate() {
    GenerateResponse reply = client.llm().generate(usual(8));
    Check.equal(reply.getUsage().getCompletionTokens(), 8, "completion_tokens");
    Check.equal(reply.getChoicesCount(), 1, "the number of choices");
    Check.that(!reply.getText().isEmpty(), "no text");
    Check.equal(reply.getChoices(0).getText(), reply.getText(), "the choice's text");
    Check.equal(joined(reply.getChoices(0).getTokens()), reply.getText(), "the tokens' text");
    Check.equal(reply.getChoices(0).getFinish().getReason(), FinishReason.FINISH_REASON_LENGTH, "the finish");
  }

  private void streamGenerate() {
    String text = client.llm().generate(usual(24)).getText();
    Reading reading = open(24, Client.CALL_TIMEOUT_MS);
    reading.endsWith(Status.Code.OK);
    reading.isWhole(24, text);
  }

  private void streamCancel() throws InterruptedException {
    Reading left = open(1000, Client.CALL_TIMEOUT_MS).until(5);
    left.leave();
    Thread.sleep(NOTICE_TIME_MS);
    Check.that(!client.cancel(left.request.getRequestId()), "it runs on, though the client has left");

    Reading stopped = open(1000, Client.CALL_TIMEOUT_MS).until(5);
    Check.that(client.cancel(stopped.request.getRequestId()), "the run that is read was not found");
    stopped.endsWith(Status.Code.CANCELLED);
    Check.that(!stopped.complete, "Completed, though it was cancelled");
  }

  private void embed() {
    EmbedRequest.Builder request = EmbedRequest.newBuilder().setNormalize(true);
    for (String text : List.of("The Queen of Hearts", "she made some tarts")) {
      request.addInputs(EmbedInput.newBuilder().setText(text));
    }
    EmbedResponse reply = client.llm().embed(request.build());
    Check.equal(reply.getEmbeddingsCount(), 2, "the number of tensors");
    for (Tensor vector : reply.getEmbeddingsList()) {
      Check.equal(vector.getMeta().getShapeList(), List.of(256L), "the shape");
      Check.equal(vector.getMeta().getDtype(), DataType.DATA_TYPE_FLOAT32, "the type");
      Check.equal(vector.getData().size(), 1024, "the number of bytes");
      ByteBuffer elements = vector.getData().asReadOnlyByteBuffer().order(ByteOrder.LITTLE_ENDIAN);
      double squares = 0;
      while (elements.hasRemaining()) {
        squares += Math.pow(elements.getFloat(), 2);
      }
      Check.that(Math.abs(Math.sqrt(squares) - 1) < 1e-4, "length %s, not 1", Math.sqrt(squares));
    }
    Check.that(!reply.getEmbeddings(0).getData().equals(reply.getEmbeddings(1).getData()), "both are the same");
    Check.that(reply.getUsage().getPromptTokens() > 0, "no prompt tokens counted");
  }

  private void infer() {
    ByteBuffer data = ByteBuffer.allocate(24).order(ByteOrder.LITTLE_ENDIAN);
    data.putFloat(1.5f).putInt(0x80000000).putInt(0x7f800000).putInt(0x7fc00001).putInt(1).putFloat(3e38f).flip();
    ByteString elements = ByteString.copyFrom(data);
    TensorMeta meta =
        TensorMeta.newBuilder().setName("x").setDtype(DataType.DATA_TYPE_FLOAT32).addShape(2).addShape(3).build();
    Tensor input = Tensor.newBuilder().setMeta(meta).setData(elements).build();
    List<Tensor> outputs =
        client.tensors().infer(InferRequest.newBuilder().setModel("identity").addInputs(input).build()).getOutputsList();
    Check.equal(outputs.size(), 1, "the number of outputs");
    Check.equal(outputs.get(0).getMeta().getName(), "x", "the name");
    Check.equal(outputs.get(0).getMeta().getShapeList(), List.of(2L, 3L), "the shape");
    Check.equal(outputs.get(0).getMeta().getDtype(), DataType.DATA_TYPE_FLOAT32, "the type");
    Check.equal(outputs.get(0).getData(), elements, "the data");
  }

  private void errorDetails() throws InvalidProtocolBufferException {
    List<Reading> live = new ArrayList<>();
    for (int count = 0; count < 3; count++) {
      live.add(open(1000, Client.CALL_TIMEOUT_MS).until(1));
    }
    try {
      open(1000, Client.CALL_TIMEOUT_MS).until(1);
      throw new AssertionError("the fourth stream was not refused");
    } catch (StatusRuntimeException refused) {
      checkRefusal(refused);
    }
    for (Reading reading : live) {
      Check.that(client.cancel(reading.request.getRequestId()), "a live run was not found");
      reading.endsWith(Status.Code.CANCELLED);
    }
  }

  private static void checkRefusal(StatusRuntimeException refused) throws InvalidProtocolBufferException {
    Check.equal(refused.getStatus().getCode(), Status.Code.RESOURCE_EXHAUSTED, "the refusal");
    String message = refused.getStatus().getDescription();
    Check.that(message != null && message.contains("live_streams"), "message %s", message);
    com.google.rpc.Status told = StatusProto.fromThrowable(refused);
    Check.that(told != null && told.getDetailsCount() == 1, "the details are %s", told);
    Any detail = told.getDetails(0);
    RetryInfo info = detail.unpack(RetryInfo.class);
    Check.equal(info.getRetryDelay().getSeconds(), 1L, "the retry delay");
    Check.equal(info.getRetryDelay().getNanos(), 0, "the retry delay's nanoseconds");
    Check.equal(refused.getTrailers().get(Client.key("retry-after")), "1", "retry-after");
  }

  private void deadline() throws InterruptedException {
    long began = System.nanoTime();
    Reading reading = open(1000, 400).until(1);
    reading.endsWith(Status.Code.DEADLINE_EXCEEDED);
    Check.that(System.nanoTime() - began < 3_000_000_000L, "it took %d ns", System.nanoTime() - began);
    Thread.sleep(NOTICE_TIME_MS);
    Check.that(!client.cancel(reading.request.getRequestId()), "it runs on after its deadline");
  }

  private void metadata() {
    try {
      client.anonymous().listModels(ListModelsRequest.getDefaultInstance());
      throw new AssertionError("models are told without a key");
    } catch (StatusRuntimeException refused) {
      Check.equal(refused.getStatus().getCode(), Status.Code.UNAUTHENTICATED, "the refusal");
    }
    List<String> names =
        client.llm().listModels(ListModelsRequest.getDefaultInstance()).getModelsList().stream()
            .map(model -> model.getName())
            .toList();
    Check.equal(names, List.of("ngram-alice"), "the models");
    AtomicReference<Metadata> headers = new AtomicReference<>();
    AtomicReference<Metadata> trailers = new AtomicReference<>();
    client
        .llm()
        .withInterceptors(MetadataUtils.newCaptureMetadataInterceptor(headers, trailers))
        .generate(usual(4));
    Check.equal(trailers.get().get(Client.key("interop-note")), "4 tokens", "interop-note");
  }

  private void compression() {
    String text = "Alice was beginning to get very tired. ".repeat(100);
    AtomicReference<Metadata> headers = new AtomicReference<>();
    AtomicReference<Metadata> trailers = new AtomicReference<>();
    TokenizeResponse reply =
        client
            .llm()
            .withCompression("gzip")
            .withInterceptors(MetadataUtils.newCaptureMetadataInterceptor(headers, trailers))
            .tokenize(TokenizeRequest.newBuilder().setText(text).build());
    Check.equal(reply.getContextLength(), 2048, "context_length");
    Check.equal(joined(reply.getTokens()), text, "the tokens' text");
    Check.equal(headers.get().get(Client.key("grpc-encoding")), "gzip", "grpc-encoding");
  }
}
