// The script by connect-web, in a page of another origin than the server's.
import { createConnectTransport, createGrpcWebTransport } from "@connectrpc/connect-web";

import { type Report, run } from "./script.ts";

/** What the program that drives the browser gives to the page. */
export interface Page {
  runScript: (given: { protocol: string; url: string; cutUrl: string; key: string }) => Promise<void>;
  report: (line: Report) => Promise<void>;
  /** How the last reply to Tokenize was encoded, which fetch does not show. */
  replyEncoding: () => Promise<string | null>;
}

declare const window: Window & Page;

window.runScript = async ({ protocol, url, cutUrl, key }) => {
  const create = protocol === "connect" ? createConnectTransport : createGrpcWebTransport;
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
