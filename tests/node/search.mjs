// Searches with an image through a client made from reid.proto at run time; prints the hits as JSON.
// usage: node search.mjs PROTO_FOLDER HOST:PORT IMAGE TOP_K
// CA_FILE names who signed the server's certificate (TLS), REIDSERVE_KEY the key to show.
import { readFileSync } from "node:fs";
import grpc from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";

const [protoFolder, target, image, topK] = process.argv.slice(2);
const { CA_FILE: authorities, REIDSERVE_KEY: key } = process.env;
const definition = loadSync("reid/v1/reid.proto", { includeDirs: [protoFolder], longs: Number });
const { SearchService } = grpc.loadPackageDefinition(definition).reid.v1;

const credentials = authorities
  ? grpc.credentials.createSsl(readFileSync(authorities))
  : grpc.credentials.createInsecure();
const metadata = new grpc.Metadata();
if (key) metadata.set("authorization", `Bearer ${key}`);

const client = new SearchService(target, credentials);
const request = { image: readFileSync(image), topK: Number(topK) };
client.Search(request, metadata, { deadline: Date.now() + 10_000 }, (error, response) => {
  if (error) {
    console.error(`${grpc.status[error.code]}: ${error.details}`);
    process.exitCode = 1;
  } else {
    console.log(JSON.stringify(response.hits));
  }
  client.close();
});
