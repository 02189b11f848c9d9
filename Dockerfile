# A CPU image of the server. Build: docker build -t qwen25vl .   Run: see docs/serving.md
FROM python:3.12-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends g++ make && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/qwen25vl
ENV PATH=/opt/qwen25vl/bin:$PATH
RUN pip install --no-cache-dir "torch ~= 2.13.0" --index-url https://download.pytorch.org/whl/cpu
WORKDIR /source
COPY pyproject.toml CMakeLists.txt README.md LICENSE ./
COPY src src
RUN pip install --no-cache-dir ".[serve,heif]"

FROM python:3.12-slim
# libgomp: the OpenMP that torch and the kernels share
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 qwen25vl && install -d -o qwen25vl /models
COPY --from=build /opt/qwen25vl /opt/qwen25vl
ENV PATH=/opt/qwen25vl/bin:$PATH HF_HOME=/models PYTHONUNBUFFERED=1
USER qwen25vl
WORKDIR /home/qwen25vl
VOLUME /models
EXPOSE 8000
HEALTHCHECK --start-period=120s --interval=15s CMD \
    ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health', timeout=5)"]
# every address of the container: a key is required (QWEN25VL_API_KEY), or --no-api-key
ENTRYPOINT ["qwen25vl", "serve", "--host", "0.0.0.0"]
