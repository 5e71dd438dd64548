"""A query's way: admission, decoding, the batcher, the gallery's ranking. It knows nothing of gRPC."""
