// The script by connect-web, in headless Chromium.
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { chromium, type Response } from "playwright-core";

import { flags } from "./flags.ts";
import type { Page } from "./page.ts";
import type { Report } from "./script.ts";

declare const window: Window & Page;

const profile = await mkdtemp(join(tmpdir(), "quill-interop-"));
// The flags keep it from asking for anything outside.
const context = await chromium.launchPersistentContext(profile, {
  executablePath: "/usr/bin/chromium",
  headless: true,
  timeout: 60_000,
  args: [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
  ],
});
try {
  const page = await context.newPage();
  page.setDefaultTimeout(30_000);
  page.on("pageerror", (error) => console.error(String(error)));
  let tokenized: Response | undefined;
  page.on("response", (response) => {
    const posted = response.request().method() === "POST";
    if (posted && response.url().endsWith("/Tokenize")) tokenized = response;
  });
  await page.exposeFunction("report", (line: Report) => console.log(JSON.stringify(line)));
  await page.exposeFunction("replyEncoding", () => tokenized?.headerValue("content-encoding") ?? null);
  await page.goto(flags["page-url"]);
  await page.waitForFunction(() => "runScript" in window);
  await page.evaluate((given) => window.runScript(given), {
    protocol: flags.protocol,
    url: flags.url,
    cutUrl: flags["cut-url"],
    key: flags.key,
  });
} finally {
  await context.close();
  await rm(profile, { recursive: true, force: true, maxRetries: 5 });
}
