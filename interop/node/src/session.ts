// Many generations on one stream.
import type { MessageInitShape } from "@bufbuild/protobuf";

import type { SessionEvent, SessionRequestSchema } from "../gen/inference/v1/llm_pb.ts";
import type { TokenColumns } from "../gen/inference/v1/token_pb.ts";
import { check, equal, type Script, usual } from "./script.ts";

const runs = 8;
const tokens = 40;
const window = 16;

type Request = MessageInitShape<typeof SessionRequestSchema>;

/** What is sent, as the iterator that a bidirectional call takes. */
class Outbox implements AsyncIterable<Request> {
  private readonly waiting: Request[] = [];
  private closed = false;
  private wake = (): void => {};

  send(request: Request): void {
    this.waiting.push(request);
    this.wake();
  }

  close(): void {
    this.closed = true;
    this.wake();
  }

  async *[Symbol.asyncIterator](): AsyncIterator<Request> {
    while (true) {
      for (let next = this.waiting.shift(); next !== undefined; next = this.waiting.shift()) yield next;
      if (this.closed) return;
      await new Promise<void>((resolve) => (this.wake = resolve));
    }
  }
}

/** One run, read from columns and events. */
class Column {
  next = 0;
  tokens = 0;
  done = false;
  complete = false;
  private readonly decoder = new TextDecoder("utf-8", { fatal: true });
  text = "";

  add(position: number, data: Uint8Array): void {
    equal(position, this.next, "the position");
    this.text += this.decoder.decode(data, { stream: true });
    this.tokens++;
    this.next++;
  }

  event({ event }: SessionEvent): void {
    if (event.case === "error") throw new Error(`code ${event.value.code}: ${event.value.message}`);
    check(event.case === "response", "an event without content");
    const { position, event: told } = event.value;
    if (told.case === "progress") return;
    equal(position, this.next, "the position");
    const batch = told.case === "delta" ? (told.value.tokens?.tokens ?? []) : [];
    batch.forEach((token, at) => this.add(position + at, token.data));
    if (batch.length === 0) this.next++;
    this.done ||= told.case === "sequenceDone";
    this.complete = told.case === "completed";
  }
}

export async function session(script: Script): Promise<void> {
  const text = await script.text(tokens);
  const outbox = new Outbox();
  const columns = new Map<number, Column>();
  const starts = Array.from({ length: runs }, (_, at) => ({ run: at + 1, request: usual(tokens), window }));
  for (const { run } of starts) columns.set(run, new Column());
  outbox.send({ starts });
  for await (const frame of script.llm.session(outbox, script.options())) {
    const started = frame.events.filter((event) => isStart(event));
    started.forEach((event) => columns.get(event.run)!.event(event));
    if (frame.tokens) takeColumns(frame.tokens, columns);
    frame.events.filter((event) => !isStart(event)).forEach((event) => columns.get(event.run)!.event(event));
    const live = [...columns].filter(([, column]) => !column.complete);
    if (live.length > 0) outbox.send({ acks: live.map(([run, column]) => ({ run, position: column.next })) });
    else outbox.close();
  }
  for (const [run, column] of columns) {
    equal(column.tokens, tokens, `the tokens of run ${run}`);
    check(column.done && column.complete, `run ${run} has no end`);
    equal(column.text, text, `the text of run ${run}`);
  }
}

function isStart({ event }: SessionEvent): boolean {
  return event.case === "response" && event.value.event.case === "started";
}

function takeColumns(frame: TokenColumns, columns: Map<number, Column>): void {
  let at = 0;
  let begin = 0;
  frame.runs.forEach((run, segment) => {
    for (let index = 0; index < frame.counts[segment]!; index++) {
      const end = begin + frame.dataLengths[at]!;
      columns.get(run)!.add(frame.positions[segment]! + index, frame.data.subarray(begin, end));
      begin = end;
      at++;
    }
  });
  equal(at, frame.ids.length, "the tokens of all segments");
  equal(begin, frame.data.length, "the bytes of all tokens");
}
