"""Start the server, ask it as any client of OpenAI's API does, and stop it."""

import base64
import json
import subprocess
import sys
import urllib.request
from pathlib import Path

QUESTION = "Is the dog to the left of the carrot?"
picture = base64.b64encode(Path(__file__).with_name("scene.png").read_bytes()).decode()
content = [
    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}},
    {"type": "text", "text": QUESTION},
]
body = json.dumps({"messages": [{"role": "user", "content": content}], "max_tokens": 100})

command = [sys.executable, "-m", "qwen25vl", "serve", "--port", "0", "--log-level", "warning"]
with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
    # when it listens it says: NAME at http://127.0.0.1:PORT/v1 (…)
    address = next(line.split()[3] for line in server.stderr if " at http" in line)
    print(f"POST {address}/chat/completions", file=sys.stderr)
    asked = urllib.request.Request(f"{address}/chat/completions", body.encode())
    with urllib.request.urlopen(asked, timeout=60) as reply:
        print(json.load(reply)["choices"][0]["message"]["content"])
    server.terminate()
