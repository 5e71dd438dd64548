// Searches with an image through a client made from reid.proto at run time; prints the hits as JSON.
// usage: node search.mjs PROTO_FOLDER HOST:PORT IMAGE TOP_K
import { readFileSync } from "node:fs";
import grpc from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";

const [protoFolder, target, image, topK] = process.argv.slice(2);
const definition = loadSync("reid/v1/reid.proto", { includeDirs: [protoFolder], longs: Number });
const { SearchService } = grpc.loadPackageDefinition(definition).reid.v1;

const client = new SearchService(target, grpc.credentials.createInsecure());
client.Search({ image: readFileSync(image), topK: Number(topK) }, (error, response) => {
  if (error) {
    console.error(error.message);
    process.exitCode = 1;
  } else {
    console.log(JSON.stringify(response.hits));
  }
  client.close();
});
