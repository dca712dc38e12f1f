// Posts files to a URL with fetch. Arguments: the URL and the files.
//
// Every second body is a stream, which fetch sends chunked. Prints the statuses, one a line.

import { createReadStream, readFileSync } from "node:fs";
import { Readable } from "node:stream";

const [url, ...files] = process.argv.slice(2);
for (const [number, file] of files.entries()) {
  const sent =
    number % 2
      ? { body: Readable.toWeb(createReadStream(file, { highWaterMark: 100 })), duplex: "half" }
      : { body: readFileSync(file, "utf8") };
  const headers = { "Content-Type": "application/json" };
  const reply = await fetch(url, { method: "POST", headers, ...sent });
  await reply.text();
  console.log(reply.status);
}
