package interop;

import inference.v1.LLMServiceGrpc;
import inference.v1.Llm.CancelGenerateRequest;
import inference.v1.TensorServiceGrpc;
import io.grpc.ClientInterceptor;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.stub.AbstractStub;
import io.grpc.stub.MetadataUtils;
import java.util.concurrent.TimeUnit;

/** The generated clients of one server, with the caller's key and without. */
final class Client implements AutoCloseable {
  /** How long a call may take, unless a case says otherwise. */
  static final long CALL_TIMEOUT_MS = 10_000;

  private final ManagedChannel channel;
  private final ClientInterceptor withKey;

  Client(String address, String key) {
    channel = Grpc.newChannelBuilder(address, InsecureChannelCredentials.create()).build();
    Metadata metadata = new Metadata();
    metadata.put(key("authorization"), "Bearer " + key);
    withKey = MetadataUtils.newAttachHeadersInterceptor(metadata);
  }

  static Metadata.Key<String> key(String name) {
    return Metadata.Key.of(name, Metadata.ASCII_STRING_MARSHALLER);
  }

  LLMServiceGrpc.LLMServiceBlockingStub llm() {
    return within(anonymous().withInterceptors(withKey), CALL_TIMEOUT_MS);
  }

  LLMServiceGrpc.LLMServiceBlockingStub llm(long timeoutMs) {
    return within(anonymous().withInterceptors(withKey), timeoutMs);
  }

  LLMServiceGrpc.LLMServiceBlockingStub anonymous() {
    return within(LLMServiceGrpc.newBlockingStub(channel), CALL_TIMEOUT_MS);
  }

  TensorServiceGrpc.TensorServiceBlockingStub tensors() {
    return within(TensorServiceGrpc.newBlockingStub(channel).withInterceptors(withKey), CALL_TIMEOUT_MS);
  }

  /** Whether a live run of this id was there to be cancelled. */
  boolean cancel(String requestId) {
    return llm().cancelGenerate(CancelGenerateRequest.newBuilder().setRequestId(requestId).build()).getFound();
  }

  private static <S extends AbstractStub<S>> S within(S stub, long timeoutMs) {
    return stub.withDeadlineAfter(timeoutMs, TimeUnit.MILLISECONDS);
  }

  @Override
  public void close() {
    channel.shutdownNow();
  }
}
