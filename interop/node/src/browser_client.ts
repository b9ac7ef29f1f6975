// The script by connect-web, in headless Chromium.
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Page as BrowserPage, chromium, type Response } from "playwright-core";

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

async function open(page: BrowserPage, url: string): Promise<void> {
  await page.goto(url);
  await page.waitForFunction(() => "runScript" in window);
}

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
  const given = { protocol: flags.protocol, url: flags.url, cutUrl: flags["cut-url"], key: flags.key };
  await open(page, flags["page-url"]);
  await page.evaluate((given) => window.runScript(given), given);
  // The same page under another name is another origin.
  await open(page, flags["page-url"].replace("127.0.0.1", "localhost"));
  const seen = await page.evaluate((given) => window.callUnadmitted(given).catch(String), given);
  const ok = seen === "Failed to fetch";
  console.log(JSON.stringify({ case: "cors", ok, detail: ok ? "" : `an origin that is not admitted sees: ${seen}` }));
} finally {
  await context.close();
  await rm(profile, { recursive: true, force: true, maxRetries: 5 });
}
