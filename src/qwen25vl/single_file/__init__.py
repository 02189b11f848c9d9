"""A checkpoint that is not a folder of the hub's form (a GGUF file, Ollama's, one safetensors file)
made into one: config.json, tokenizer and template beside a link to the weights."""
