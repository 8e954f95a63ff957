// node studies/packed-runtime/llama.mjs MODEL.gguf PROMPT NEW THREADS: tokens a second of llama.cpp, greedy, as one line of JSON.
//
// Run it where `npm install node-llama-cpp` was: that package carries llama.cpp, built for this machine.
import {performance} from "node:perf_hooks";
import {readFileSync} from "node:fs";
import {createRequire} from "node:module";
import {pathToFileURL} from "node:url";

const [path, prompt, fresh, threads] = process.argv.slice(2);
const require = createRequire(pathToFileURL(process.cwd() + "/"));
const entry = require.resolve("node-llama-cpp");
const {getLlama} = await import(pathToFileURL(entry));
const resident = () => Number(readFileSync("/proc/self/status", "utf8").match(/VmRSS:\s+(\d+)/)[1]) * 1024;
const anonymous = () => Number(readFileSync("/proc/self/status", "utf8").match(/RssAnon:\s+(\d+)/)[1]) * 1024;

const llama = await getLlama({gpu: false, build: "never", maxThreads: Number(threads)});
const before = {rss: resident(), anonymous: anonymous()};
const model = await llama.loadModel({modelPath: path});
const context = await model.createContext({contextSize: 512, threads: Number(threads)});
const sequence = context.getSequence();
const loaded = {rss: resident(), anonymous: anonymous()};
const words = Array.from({length: Number(prompt)}, (_, i) => (i * 7919 + 1) % 49152);
const steps = [], work = [];
let begun = performance.now(), used = process.cpuUsage(), count = 0, first = 0;
for await (const _ of sequence.evaluate(words, {temperature: 0, yieldEogToken: true})) {
  const spent = process.cpuUsage(used), elapsed = performance.now() - begun;
  if (count === 0) first = elapsed;
  else { steps.push(elapsed / 1e3); work.push((spent.user + spent.system) / 1e6); }
  if (++count > Number(fresh)) break;
  begun = performance.now();
  used = process.cpuUsage();
}
const median = (list) => list.sort((a, b) => a - b)[Math.floor(list.length / 2)];
const package_ = JSON.parse(readFileSync(entry.replace(/dist.*/, "package.json"), "utf8"));
const release = JSON.parse(readFileSync(entry.replace(/dist.*/, "llama/binariesGithubRelease.json"), "utf8"));
console.log(JSON.stringify({
  prefill_s: first / 1e3,
  decode_tokens_per_s: 1 / median(steps),
  decode_tokens_per_cpu_s: 1 / median(work),
  rss_after_load_bytes: loaded.rss - before.rss,
  anonymous_after_load_bytes: loaded.anonymous - before.anonymous,
  rss_after_generate_bytes: resident() - before.rss,
  node_llama_cpp: package_.version,
  llama_cpp: release.release,
}));
process.exit(0);
