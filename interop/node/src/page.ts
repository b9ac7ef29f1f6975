// The script by connect-web, in a page of another origin than the server's.
import { Code, createClient } from "@connectrpc/connect";
import { createConnectTransport, createGrpcWebTransport } from "@connectrpc/connect-web";

import { LLMService } from "../gen/inference/v1/llm_pb.ts";
import { failure, type Report, run } from "./script.ts";

interface Given {
  protocol: string;
  url: string;
  cutUrl: string;
  key: string;
}

/** What the program that drives the browser gives to the page. */
export interface Page {
  runScript: (given: Given) => Promise<void>;
  /** Calls from an origin that the server does not admit, and tells what the page sees of it. */
  callUnadmitted: (given: Given) => Promise<string>;
  report: (line: Report) => Promise<void>;
  /** How the last reply to Tokenize was encoded, which fetch does not show. */
  replyEncoding: () => Promise<string | null>;
}

declare const window: Window & Page;

function transports(protocol: string): typeof createConnectTransport | typeof createGrpcWebTransport {
  return protocol === "connect" ? createConnectTransport : createGrpcWebTransport;
}

window.callUnadmitted = async ({ protocol, url, key }) => {
  const llm = createClient(LLMService, transports(protocol)({ baseUrl: url }));
  // fetch throws a TypeError and tells a page nothing; connect-web makes it "unknown".
  const call = llm.listModels({}, { headers: { authorization: `Bearer ${key}` }, timeoutMs: 10_000 });
  return (await failure(call, Code.Unknown)).rawMessage;
};

window.runScript = async ({ protocol, url, cutUrl, key }) => {
  const create = transports(protocol);
  const reports: Promise<void>[] = [];
  await run(
    {
      protocol,
      key,
      transport: create({ baseUrl: url }),
      gzip: create({ baseUrl: url }),
      cut: create({ baseUrl: cutUrl }),
      fullDuplex: false,
      compresses: protocol === "connect",
      replyEncoding: () => window.replyEncoding(),
    },
    (line) => reports.push(window.report(line)),
  );
  await Promise.all(reports);
};
