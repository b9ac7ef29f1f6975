// What has arrived of one run, checked as it comes.
import { FinishReason, type Started, type StreamGenerateResponse } from "../gen/inference/v1/llm_pb.ts";
import { check, equal } from "./script.ts";

export class Reading {
  started: Started | undefined;
  /** The entry that has to come next. */
  next = 0;
  tokens = 0;
  text = "";
  complete = false;
  private finish: FinishReason | undefined;

  /** Reads until so many tokens have come, or to the end. */
  async until(stream: AsyncIterator<StreamGenerateResponse>, tokens = Infinity): Promise<void> {
    while (this.tokens < tokens) {
      const { value, done } = await stream.next();
      if (done) return;
      this.take(value);
    }
  }

  /** Checks a run that has ended well. */
  whole(tokens: number, text: string): void {
    check(Boolean(this.started?.epoch), "no epoch");
    equal(this.tokens, tokens, "the number of tokens");
    equal(this.finish, FinishReason.LENGTH, "the finish");
    check(this.complete, "no Completed");
    equal(this.text, text, "the text");
  }

  private take({ position, event }: StreamGenerateResponse): void {
    if (event.case === "progress") return;
    check(!this.complete, "a message after Completed");
    equal(position, this.next, "the position");
    check(this.started !== undefined || event.case === "started", `the first message is ${event.case}`);
    let span = 1;
    switch (event.case) {
      case "started":
        this.started = event.value;
        break;
      case "delta": {
        check(this.finish === undefined, "tokens after SequenceDone");
        const tokens = event.value.tokens?.tokens.length ?? 0;
        this.tokens += tokens;
        this.text += event.value.text;
        span = Math.max(1, tokens);
        break;
      }
      case "sequenceDone":
        this.finish = event.value.finish?.reason;
        break;
      case "completed":
        equal(event.value.entries, position + 1, "entries");
        this.complete = true;
    }
    this.next += span;
  }
}
