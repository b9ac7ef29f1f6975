// Bundles the programs into .tools/.
import { copyFile } from "node:fs/promises";
import { build } from "esbuild";

const common = { bundle: true, format: "esm", logLevel: "warning", target: "es2022" };
await build({
  ...common,
  entryPoints: ["src/connect_client.ts", "src/grpc_client.ts", "src/browser_client.ts", "src/connect_server.ts"],
  outdir: ".tools",
  outExtension: { ".js": ".mjs" },
  platform: "node",
  // CommonJS packages that look for files beside themselves.
  packages: "external",
});
await build({ ...common, entryPoints: ["src/page.ts"], outfile: ".tools/page/page.js", platform: "browser" });
await copyFile("src/page.html", ".tools/page/index.html");
