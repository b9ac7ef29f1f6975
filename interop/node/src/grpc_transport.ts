// A Transport of Connect over grpc-js, so that the generated clients speak through it.
import { create, type DescMessage, type DescMethod, fromBinary, type MessageShape, toBinary } from "@bufbuild/protobuf";
import type { MessageInitShape } from "@bufbuild/protobuf";
import { Code, ConnectError, type StreamResponse, type Transport, type UnaryResponse } from "@connectrpc/connect";
import * as grpc from "@grpc/grpc-js";

import { StatusSchema } from "../gen/google/rpc/error_details_pb.ts";

const detailsKey = "grpc-status-details-bin";

/** Calls by grpc-js; with gzip, requests are compressed. */
export class GrpcTransport implements Transport {
  private readonly client: grpc.Client;

  constructor(address: string, gzip = false) {
    const algorithm = gzip ? grpc.compressionAlgorithms.gzip : grpc.compressionAlgorithms.identity;
    this.client = new grpc.Client(address, grpc.credentials.createInsecure(), {
      "grpc.default_compression_algorithm": algorithm,
      "grpc.use_local_subchannel_pool": 1,
    });
  }

  unary: Transport["unary"] = (method, signal, timeoutMs, header, input) => {
    type Reply = UnaryResponse<typeof method.input, typeof method.output>;
    return new Promise<Reply>((resolve, reject) => {
      let reply: MessageShape<typeof method.output>;
      const call = this.client.makeUnaryRequest(
        path(method),
        serializer(method.input),
        deserializer(method.output),
        create(method.input, input),
        outgoing(header),
        deadline(timeoutMs),
        (error, value) => (error ? reject(failed(error)) : void (reply = value!)),
      );
      const headers = received(call);
      signal?.addEventListener("abort", () => call.cancel());
      call.on("status", (status) => {
        if (status.code !== grpc.status.OK) return;
        resolve({
          stream: false,
          service: method.parent,
          method,
          header: headers(),
          message: reply,
          trailer: incoming(status.metadata),
        });
      });
    });
  };

  stream: Transport["stream"] = async (method, signal, timeoutMs, header, input) => {
    type Reply = StreamResponse<typeof method.input, typeof method.output>;
    const call = this.client.makeBidiStreamRequest(
      path(method),
      serializer(method.input),
      deserializer(method.output),
      outgoing(header),
      deadline(timeoutMs),
    );
    signal?.addEventListener("abort", () => call.cancel());
    const sending = send(call, method.input, input);
    const trailer = new Headers();
    call.on("status", (status) => incoming(status.metadata).forEach((value, key) => trailer.append(key, value)));
    const headers = received(call);
    const reply: Reply = {
      stream: true,
      service: method.parent,
      method,
      header: headers(),
      message: messages(call, sending),
      trailer,
    };
    return reply;
  };

  close(): void {
    this.client.close();
  }
}

async function send<I extends DescMessage>(
  call: grpc.ClientDuplexStream<MessageShape<I>, unknown>,
  schema: I,
  input: AsyncIterable<MessageInitShape<I>>,
): Promise<void> {
  for await (const message of input) call.write(create(schema, message));
  call.end();
}

async function* messages<I, O>(call: grpc.ClientDuplexStream<I, O>, sending: Promise<void>): AsyncGenerator<O> {
  try {
    for await (const message of call) yield message as O;
    await sending;
  } catch (error) {
    throw failed(error as grpc.ServiceError);
  } finally {
    call.cancel();
  }
}

function path(method: DescMethod): string {
  return `/${method.parent.typeName}/${method.name}`;
}

function serializer<I extends DescMessage>(schema: I): (message: MessageShape<I>) => Buffer {
  return (message) => Buffer.from(toBinary(schema, message));
}

function deserializer<O extends DescMessage>(schema: O): (data: Buffer) => MessageShape<O> {
  return (data) => fromBinary(schema, data);
}

function deadline(timeoutMs: number | undefined): grpc.CallOptions {
  return timeoutMs === undefined ? {} : { deadline: Date.now() + timeoutMs };
}

function outgoing(header: HeadersInit | undefined): grpc.Metadata {
  const metadata = new grpc.Metadata();
  new Headers(header).forEach((value, key) => metadata.set(key, value));
  return metadata;
}

function incoming(metadata: grpc.Metadata): Headers {
  const headers = new Headers();
  for (const [key, value] of Object.entries(metadata.getMap())) {
    headers.append(key, typeof value === "string" ? value : value.toString("base64"));
  }
  return headers;
}

/** The headers of a call's reply, as far as they have come. */
function received(call: Pick<grpc.ClientUnaryCall, "on">): () => Headers {
  let headers = new Headers();
  call.on("metadata", (metadata) => void (headers = incoming(metadata)));
  return () => headers;
}

function failed(error: grpc.ServiceError): ConnectError {
  if (error.metadata === undefined) return new ConnectError(error.message, Code.Unknown);
  const raised = new ConnectError(error.details, error.code as number as Code, incoming(error.metadata));
  const [details] = error.metadata.get(detailsKey);
  if (details instanceof Buffer) {
    raised.details = fromBinary(StatusSchema, details).details.map(({ typeUrl, value }) => ({
      type: typeUrl.slice(typeUrl.lastIndexOf("/") + 1),
      value,
    }));
  }
  return raised;
}
