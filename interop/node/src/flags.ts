// What every client program is given.
import { parseArgs } from "node:util";

export const flags = parseArgs({
  options: {
    protocol: { type: "string", default: "" },
    url: { type: "string", default: "" },
    "grpc-address": { type: "string", default: "" },
    key: { type: "string", default: "" },
    "cut-url": { type: "string", default: "" },
    "cut-address": { type: "string", default: "" },
    "page-url": { type: "string", default: "" },
    http2: { type: "boolean", default: false },
  },
}).values;
