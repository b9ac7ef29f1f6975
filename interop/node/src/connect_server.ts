// interop.v1.PlayService by connect-node: Connect, gRPC-Web and gRPC, over HTTP/1.1 on one port and HTTP/2 on another.
import { once } from "node:events";
import * as http from "node:http";
import * as http2 from "node:http2";
import type { AddressInfo, Server } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { Code, ConnectError, type HandlerContext, type ServiceImpl } from "@connectrpc/connect";
import { compressionGzip, connectNodeAdapter } from "@connectrpc/connect-node";

import { ErrorInfoSchema } from "../gen/google/rpc/error_details_pb.ts";
import { PlayService } from "../gen/interop/v1/play_pb.ts";

let streams = 0;

const play: ServiceImpl<typeof PlayService> = {
  async echo(request, context) {
    answer(context);
    await pause(request.delayMs, context);
    if (request.fail) throw refusal(request.text);
    return { text: request.text, index: streams };
  },

  async *repeat(request, context) {
    answer(context);
    streams++;
    try {
      for (let index = 0; index < request.count; index++) {
        await pause(request.delayMs, context);
        yield { text: request.text, index };
      }
      if (request.fail) throw refusal(request.text);
    } finally {
      streams--;
    }
  },

  async collect(requests, context) {
    answer(context);
    const texts = [];
    for await (const request of requests) texts.push(request.text);
    return { text: texts.join("+"), index: texts.length };
  },

  async *converse(requests, context) {
    answer(context);
    let index = 0;
    for await (const request of requests) yield { text: request.text, index: index++ };
  },
};

/** Waits, unless the call ends before; then its reason is thrown. */
async function pause(delayMs: number, { signal }: HandlerContext): Promise<void> {
  try {
    await sleep(delayMs, undefined, { signal });
  } catch {
    throw signal.reason;
  }
}

/** Sets the headers and trailers that belong to those of the request. */
function answer(context: HandlerContext): void {
  for (const suffix of ["", "-bin"]) {
    const value = context.requestHeader.get(`x-interop${suffix}`);
    if (value === null) continue;
    context.responseHeader.set(`x-header${suffix}`, value);
    context.responseTrailer.set(`x-trailer${suffix}`, value);
  }
}

function refusal(message: string): ConnectError {
  const info = { desc: ErrorInfoSchema, value: { reason: "PLAYED", domain: "interop" } };
  return new ConnectError(message, Code.FailedPrecondition, undefined, [info]);
}

async function listening(server: Server): Promise<string> {
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return `127.0.0.1:${(server.address() as AddressInfo).port}`;
}

const handler = connectNodeAdapter({
  routes: (router) => router.service(PlayService, play),
  acceptCompression: [compressionGzip],
});
const http1Address = await listening(http.createServer(handler));
const http2Address = await listening(http2.createServer(handler));
console.log(
  JSON.stringify({
    url: `http://${http1Address}`,
    h2c_url: `http://${http2Address}`,
    grpc_address: http2Address,
  }),
);
