// A large tensor in chunks, both ways.
import { create } from "@bufbuild/protobuf";

import { DataType, TensorMetaSchema } from "../gen/inference/v1/tensor_pb.ts";
import { type StreamInferRequest, StreamInferRequestSchema } from "../gen/inference/v1/tensor_service_pb.ts";
import { check, equal, type Script } from "./script.ts";

const elements = 1_500_000;
const chunkBytes = 1 << 20;

export async function streamInfer(script: Script): Promise<void> {
  const data = new Uint8Array(4 * elements);
  for (let at = 0; at < data.length; at += 65536) crypto.getRandomValues(data.subarray(at, at + 65536));
  const got = new Uint8Array(data.length);
  let received = 0;
  let hasHeader = false;
  let isFinal = false;
  for await (const { part } of script.tensors.streamInfer(requests(data), script.options())) {
    if (part.case === "header") {
      equal(part.value.tensors.map((meta) => meta.name).join(), "x", "the names");
      hasHeader = true;
    } else if (part.case === "chunk") {
      check(!isFinal, "a chunk after the last");
      equal(part.value.offset, BigInt(received), "the offset");
      got.set(part.value.data, received);
      received += part.value.data.length;
      isFinal = part.value.isFinal;
    }
  }
  check(hasHeader && isFinal, `header ${hasHeader}, last chunk ${isFinal}`);
  equal(received, data.length, "the bytes");
  check(got.every((byte, at) => byte === data[at]), "the elements that came back are others");
}

async function* requests(data: Uint8Array): AsyncGenerator<StreamInferRequest> {
  const meta = create(TensorMetaSchema, { name: "x", shape: [BigInt(elements)], dtype: DataType.UINT32 });
  yield create(StreamInferRequestSchema, { part: { case: "header", value: { model: "identity", tensors: [meta] } } });
  for (let offset = 0; offset < data.length; offset += chunkBytes) {
    const end = offset + chunkBytes;
    const chunk = {
      sequence: offset / chunkBytes,
      data: data.subarray(offset, end),
      isFinal: end >= data.length,
      offset: BigInt(offset),
    };
    yield create(StreamInferRequestSchema, { part: { case: "chunk", value: chunk } });
  }
}
