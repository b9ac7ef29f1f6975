// The cases of unary calls.
import { Code } from "@connectrpc/connect";

import { FinishReason } from "../gen/inference/v1/llm_pb.ts";
import { DataType } from "../gen/inference/v1/tensor_pb.ts";
import type { TokenBatch } from "../gen/inference/v1/token_pb.ts";
import { check, equal, failure, type Script, usual } from "./script.ts";

export async function generate(script: Script): Promise<void> {
  const reply = await script.llm.generate(usual(8), script.options());
  equal(reply.usage?.completionTokens, 8, "completionTokens");
  equal(reply.choices.length, 1, "the number of choices");
  const choice = reply.choices[0]!;
  check(reply.text !== "", "no text");
  equal(choice.text, reply.text, "the choice's text");
  equal(joined(choice.tokens), reply.text, "the tokens' text");
  equal(choice.finish?.reason, FinishReason.LENGTH, "the finish");
}

function joined(batch: TokenBatch | undefined): string {
  return (batch?.tokens ?? []).map((token) => token.text ?? "").join("");
}

export async function embed(script: Script): Promise<void> {
  const inputs = ["The Queen of Hearts", "she made some tarts"].map((text) => ({
    input: { case: "text" as const, value: text },
  }));
  const reply = await script.llm.embed({ inputs, normalize: true }, script.options());
  equal(reply.embeddings.length, 2, "the number of tensors");
  const vectors = reply.embeddings.map((tensor) => {
    equal(String(tensor.meta?.shape), "256", "the shape");
    equal(tensor.meta?.dtype, DataType.FLOAT32, "the dtype");
    equal(tensor.data.length, 1024, "the bytes");
    return floats(tensor.data);
  });
  for (const vector of vectors) {
    const length = Math.hypot(...vector);
    check(Math.abs(length - 1) < 1e-4, `the length is ${length}, not 1`);
  }
  check(String(vectors[0]) !== String(vectors[1]), "both vectors are the same");
  check((reply.usage?.promptTokens ?? 0) > 0, "no prompt tokens counted");
}

function floats(data: Uint8Array): number[] {
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  return Array.from({ length: data.length / 4 }, (_, at) => view.getFloat32(4 * at, true));
}

export async function infer(script: Script): Promise<void> {
  const data = new Uint8Array(24);
  const view = new DataView(data.buffer);
  view.setFloat32(0, 1.5, true);
  [0x80000000, 0x7f800000, 0x7fc00001, 1].forEach((bits, at) => view.setUint32(4 + 4 * at, bits, true));
  view.setFloat32(20, 3e38, true);
  const meta = { name: "x", shape: [2n, 3n], dtype: DataType.FLOAT32 };
  const reply = await script.tensors.infer({ model: "identity", inputs: [{ meta, data }] }, script.options());
  equal(reply.outputs.length, 1, "the number of outputs");
  const got = reply.outputs[0]!;
  equal(got.meta?.name, "x", "the name");
  equal(String(got.meta?.shape), "2,3", "the shape");
  equal(got.meta?.dtype, DataType.FLOAT32, "the dtype");
  equal(Array.from(got.data).join(), data.join(), "the elements");
}

export async function metadata(script: Script): Promise<void> {
  const refused = await failure(script.llm.listModels({}, script.options({ headers: {} })), Code.Unauthenticated);
  // HTTP's own header: gRPC's refusals have trailers only.
  if (script.setting.protocol !== "grpc") {
    check(refused.metadata.has("www-authenticate"), `no www-authenticate in ${shown(refused.metadata)}`);
  }
  const models = await script.llm.listModels({}, script.options());
  equal(models.models.map((model) => model.name).join(), "ngram-alice", "the models");
  let trailers = new Headers();
  await script.llm.generate(usual(4), script.options({ onTrailer: (told) => void (trailers = told) }));
  equal(trailers.get("interop-note"), "4 tokens", `interop-note of ${shown(trailers)}`);
}

function shown(headers: Headers): string {
  return JSON.stringify([...headers.keys()]);
}

export async function compression(script: Script): Promise<void> {
  const text = "Alice was beginning to get very tired. ".repeat(100);
  let headers = new Headers();
  const reply = await script.llmGzip.tokenize(
    { text },
    script.options({ onHeader: (told) => void (headers = told) }),
  );
  equal(reply.contextLength, 2048, "contextLength");
  equal(joined(reply.tokens), text, "the tokens' text");
  if (script.setting.replyEncoding !== undefined) {
    const encoding = await script.setting.replyEncoding(headers);
    check(encoding === "gzip" || encoding === "zstd", `the reply's encoding is ${encoding} in ${shown(headers)}`);
  }
}
