# docker build -t nucsam .                                                  with CUDA, as PyTorch comes by default
# docker build -t nucsam --build-arg PIP_INDEX="--index-url <address>" .    from another index, such as PyTorch's for CPUs
# docker run --rm -v "$PWD:/work" nucsam segment images segmented           (with a GPU: --gpus all)
FROM python:3.11-slim
ARG PIP_INDEX=""
# A layer of its own, which changes of the source leave in the cache; pyproject.toml has the same bounds.
# hadolint ignore=DL3013
RUN pip install --no-cache-dir ${PIP_INDEX} "torch>=2.10" "torchvision>=0.25"
COPY . /source
RUN pip install --no-cache-dir "/source[train,slides]" && rm -rf /source
ENV MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=true
WORKDIR /work
ENTRYPOINT ["nucsam"]
CMD ["--help"]
