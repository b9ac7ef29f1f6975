// The script by connect-node: Connect and gRPC-Web over HTTP/1.1 and HTTP/2, and gRPC.
import type { Transport } from "@connectrpc/connect";
import {
  compressionGzip,
  createConnectTransport,
  createGrpcTransport,
  createGrpcWebTransport,
  Http2SessionManager,
} from "@connectrpc/connect-node";

import { flags } from "./flags.ts";
import { run } from "./script.ts";

const grpc = flags.protocol === "grpc";
const http2 = flags.http2 || grpc;
const sessions: Http2SessionManager[] = [];

function transport(baseUrl: string, compressed = false): Transport {
  const common = {
    acceptCompression: [compressionGzip],
    ...(compressed ? { sendCompression: compressionGzip } : {}),
  };
  if (!http2) {
    const create = flags.protocol === "connect" ? createConnectTransport : createGrpcWebTransport;
    return create({ baseUrl, httpVersion: "1.1", ...common });
  }
  const sessionManager = new Http2SessionManager(baseUrl);
  sessions.push(sessionManager);
  if (grpc) return createGrpcTransport({ baseUrl, sessionManager, ...common });
  const create = flags.protocol === "connect" ? createConnectTransport : createGrpcWebTransport;
  return create({ baseUrl, httpVersion: "2", sessionManager, ...common });
}

const url = grpc ? `http://${flags["grpc-address"]}` : flags.url;
const cutUrl = grpc ? `http://${flags["cut-address"]}` : flags["cut-url"];

await run(
  {
    protocol: flags.protocol,
    key: flags.key,
    transport: transport(url),
    gzip: transport(url, true),
    cut: transport(cutUrl),
    fullDuplex: http2 && flags.protocol !== "grpc-web",
    compresses: true,
    replyEncoding: (headers) => headers.get("content-encoding") ?? headers.get("grpc-encoding"),
  },
  (line) => console.log(JSON.stringify(line)),
);
for (const session of sessions) session.abort();
