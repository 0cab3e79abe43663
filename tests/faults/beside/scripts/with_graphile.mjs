// graphile-worker, as its library is used: `node with_graphile.mjs COMMAND [ARGUMENT ...]`; see run.py.
import fs from "node:fs";
import path from "node:path";
import { createRequire } from "node:module";

const require = createRequire(path.join(process.env.BESIDE_NODE, "package.json"));
const { run, makeWorkerUtils } = require("graphile-worker");
const connectionString = process.env.BESIDE_DSN;
const [command, first, last] = process.argv.slice(2);

class Unprintable extends Error {
  toString() {
    throw new Error("no text");
  }
}

function fail({ how }) {
  if (how === "nul") throw new Error("before\0after");
  if (how === "surrogate") throw new Error("before\ud800after");
  if (how === "large") throw new Error("x".repeat(20_000_000));
  if (how === "str") throw new Unprintable();
  throw new Error("no");
}

const taskList = {
  good: async ({ number }) => fs.appendFileSync(process.env.BESIDE_RAN, `${number}\n`),
  fail,
  again: fail,
};

if (command === "version") {
  console.log(require("graphile-worker/package.json").version);
} else if (command === "worker") {
  const runner = await run({ connectionString, concurrency: 10, taskList });
  await runner.promise;
} else {
  const utils = await makeWorkerUtils({ connectionString });
  try {
    await utils.migrate();
    const specs = [];
    if (command === "enqueue") {
      for (let number = +first; number < +last; number++) specs.push({ identifier: "good", payload: { number } });
      await utils.addJobs(specs);
    }
  } finally {
    await utils.release();
  }
}
