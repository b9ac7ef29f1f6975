// The script by grpc-js.
import { flags } from "./flags.ts";
import { GrpcTransport } from "./grpc_transport.ts";
import { run } from "./script.ts";

const transport = new GrpcTransport(flags["grpc-address"]);
const gzip = new GrpcTransport(flags["grpc-address"], true);
const cut = new GrpcTransport(flags["cut-address"]);

await run(
  // grpc-js shows nobody how a reply was encoded.
  { protocol: "grpc", key: flags.key, transport, gzip, cut, fullDuplex: true, compresses: true },
  (line) => console.log(JSON.stringify(line)),
);
for (const one of [transport, gzip, cut]) one.close();
