// The cases of server streams.
import { create } from "@bufbuild/protobuf";
import { Code, ConnectError } from "@connectrpc/connect";

import { RetryInfoSchema } from "../gen/google/rpc/error_details_pb.ts";
import {
  type GenerateRequest,
  ResumeSchema,
  type StreamGenerateResponse,
  StreamOptionsSchema,
} from "../gen/inference/v1/llm_pb.ts";
import { Reading } from "./reading.ts";
import { check, equal, failure, type Script, usual } from "./script.ts";

export async function streamGenerate(script: Script): Promise<void> {
  const text = await script.text(24);
  const request = usual(24);
  const got = new Reading();
  await got.until(script.llm.streamGenerate(request, script.options())[Symbol.asyncIterator]());
  got.whole(24, text);
  equal(got.started?.requestId, request.requestId, "the request id");
}

/** A stream whose first tokens have been read. */
class Opened {
  readonly reading = new Reading();
  private readonly stop = new AbortController();
  private readonly stream: AsyncIterator<StreamGenerateResponse>;

  constructor(script: Script, readonly request: GenerateRequest, timeoutMs = 10_000) {
    const options = script.options({ signal: this.stop.signal, timeoutMs });
    this.stream = script.llm.streamGenerate(request, options)[Symbol.asyncIterator]();
  }

  async first(tokens: number): Promise<this> {
    await this.reading.until(this.stream, tokens);
    equal(this.reading.tokens, tokens, "the tokens so far");
    return this;
  }

  rest(): Promise<void> {
    return this.reading.until(this.stream);
  }

  leave(): void {
    this.stop.abort();
  }
}

export async function streamCancel(script: Script): Promise<void> {
  const left = await new Opened(script, usual(1000)).first(5);
  left.leave();
  await failure(left.rest(), Code.Canceled);
  await script.noticed();
  await script.cancelled(left.request.requestId, false);

  const stopped = await new Opened(script, usual(1000)).first(5);
  await script.cancelled(stopped.request.requestId, true);
  await failure(stopped.rest(), Code.Canceled);
  check(!stopped.reading.complete, "Completed, though it was cancelled");
}

export async function deadline(script: Script): Promise<void> {
  const began = performance.now();
  const late = await new Opened(script, usual(1000), 400).first(1);
  await failure(late.rest(), Code.DeadlineExceeded);
  const took = performance.now() - began;
  check(took < 3000, `it took ${took} ms`);
  await script.noticed();
  await script.cancelled(late.request.requestId, false);
}

export async function errorDetails(script: Script): Promise<void> {
  const streams = [];
  for (let live = 0; live < 3; live++) streams.push(await new Opened(script, usual(1000)).first(1));
  const refused = await failure(new Opened(script, usual(1000)).first(1), Code.ResourceExhausted);
  check(refused.rawMessage.includes("live_streams"), `the message is ${refused.rawMessage}`);
  equal(refused.details.length, 1, "the number of details");
  const [info] = refused.findDetails(RetryInfoSchema);
  check(info !== undefined, "the detail is no RetryInfo");
  equal(info.retryDelay?.seconds, 1n, "the seconds of the delay");
  equal(info.retryDelay?.nanos, 0, "the nanoseconds of the delay");
  // A key that is in the headers and in the trailers has both values, joined.
  equal(refused.metadata.get("retry-after")?.split(", ")[0], "1", "retry-after");
  for (const stream of streams) {
    await script.cancelled(stream.request.requestId, true);
    await failure(stream.rest(), Code.Canceled);
  }
}

export async function resume(script: Script): Promise<void> {
  const text = await script.text(200);
  const request = usual(200);
  const streamOptions = create(StreamOptionsSchema, { resumeTtlMs: 20_000 });
  request.streamOptions = streamOptions;
  const got = new Reading();
  let cuts = 0;
  while (!got.complete && cuts <= 50) {
    if (got.started !== undefined) {
      streamOptions.resume = create(ResumeSchema, { epoch: got.started.epoch, nextPosition: got.next });
    }
    try {
      await got.until(script.llmCut.streamGenerate(request, script.options())[Symbol.asyncIterator]());
    } catch (error) {
      if (!(error instanceof ConnectError)) throw error;
      cuts++;
    }
  }
  check(cuts > 0, "the connection was never cut");
  got.whole(200, text);
}
