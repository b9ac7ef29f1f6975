// The script of calls of interop/README.md, over any Transport of Connect: in Node.js and in browsers.
import { create } from "@bufbuild/protobuf";
import { type CallOptions, type Client, Code, ConnectError, createClient, type Transport } from "@connectrpc/connect";

import { type GenerateRequest, GenerateRequestSchema, LLMService } from "../gen/inference/v1/llm_pb.ts";
import { TensorService } from "../gen/inference/v1/tensor_service_pb.ts";
import { session } from "./session.ts";
import { deadline, errorDetails, resume, streamCancel, streamGenerate } from "./streams.ts";
import { streamInfer } from "./tensors.ts";
import { compression, embed, generate, infer, metadata } from "./unary.ts";

/** What a program has to offer to the script. */
export interface Setting {
  protocol: string;
  key: string;
  transport: Transport;
  /** Sends requests in gzip, where the library can. */
  gzip: Transport;
  /** Leads through the proxy that cuts. */
  cut: Transport;
  fullDuplex: boolean;
  /** Whether there is a case for compression at all. */
  compresses: boolean;
  /** How the last reply was encoded, where something tells it. */
  replyEncoding?: (headers: Headers) => string | null | Promise<string | null>;
}

/** One line of a program's output. */
export interface Report {
  case: string;
  ok: boolean;
  detail: string;
}

const callTimeoutMs = 10_000;
const noticeMs = 500;

/** What the cases share: clients, and the usual calls. */
export class Script {
  readonly llm: Client<typeof LLMService>;
  readonly llmGzip: Client<typeof LLMService>;
  readonly llmCut: Client<typeof LLMService>;
  readonly tensors: Client<typeof TensorService>;

  constructor(readonly setting: Setting) {
    this.llm = createClient(LLMService, setting.transport);
    this.llmGzip = createClient(LLMService, setting.gzip);
    this.llmCut = createClient(LLMService, setting.cut);
    this.tensors = createClient(TensorService, setting.transport);
  }

  /** The options of a call: credentials and a deadline, and what is given besides. */
  options(more: CallOptions = {}): CallOptions {
    return { timeoutMs: callTimeoutMs, headers: { authorization: `Bearer ${this.setting.key}` }, ...more };
  }

  /** What Generate answers to the usual request. */
  async text(tokens: number): Promise<string> {
    return (await this.llm.generate(usual(tokens), this.options())).text;
  }

  /** Asks the server to end a run, and checks whether it had one. */
  async cancelled(requestId: string, found: boolean): Promise<void> {
    const reply = await this.llm.cancelGenerate({ requestId }, this.options());
    equal(reply.found, found, "found of CancelGenerate");
  }

  /** Waits as long as the server may take to notice that a caller has gone. */
  noticed(): Promise<void> {
    return new Promise((resolve) => setTimeout(resolve, noticeMs));
  }
}

/** The usual request. */
export function usual(tokens: number): GenerateRequest {
  return create(GenerateRequestSchema, {
    prompt: "Alice was beginning",
    maxTokens: tokens,
    temperature: 0,
    ignoreEos: true,
    requestId: `js-${crypto.randomUUID()}`,
  });
}

/** Throws unless it holds. */
export function check(holds: boolean, message: string): asserts holds {
  if (!holds) throw new Error(message);
}

/** Throws unless both are the same. */
export function equal<T>(got: T, want: T, what: string): void {
  check(Object.is(got, want), `${what} is ${String(got)}, not ${String(want)}`);
}

/** The error that a call ends with, which has to have this code. */
export async function failure(call: Promise<unknown>, code: Code): Promise<ConnectError> {
  try {
    await call;
  } catch (error) {
    if (!(error instanceof ConnectError)) throw error;
    equal(Code[error.code], Code[code], `the code (${error.rawMessage})`);
    return error;
  }
  throw new Error(`OK, not ${Code[code]}`);
}

/** Runs all cases and tells of each. */
export async function run(setting: Setting, report: (line: Report) => void): Promise<void> {
  const cases: Record<string, (script: Script) => Promise<void>> = {
    generate,
    stream_generate: streamGenerate,
    stream_cancel: streamCancel,
    embed,
    infer,
    error_details: errorDetails,
    deadline,
    metadata,
    ...(setting.compresses ? { compression } : {}),
    resume,
    ...(setting.fullDuplex ? { session, stream_infer: streamInfer } : {}),
  };
  const script = new Script(setting);
  for (const [name, one] of Object.entries(cases)) {
    try {
      await one(script);
      report({ case: name, ok: true, detail: "" });
    } catch (error) {
      report({ case: name, ok: false, detail: String(error) });
    }
  }
}
