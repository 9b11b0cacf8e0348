# CPU:  docker build -t dit-compress .
# CUDA: docker build -t dit-compress --build-arg BASE=pytorch/pytorch:2.13.0-cuda13.0-cudnn9-runtime --build-arg TORCH= .
# A base that brings torch keeps its own (TORCH=); any other gets the pinned one of constraints.txt.
ARG BASE=python:3.11-slim
FROM ${BASE}
ARG TORCH=torch
ARG EXTRAS=all
WORKDIR /opt/dit-compress
COPY . .
RUN if [ -n "$TORCH" ]; then pip install --no-cache-dir -c constraints.txt "$TORCH"; fi \
 && pip install --no-cache-dir ".[${EXTRAS}]" \
 && dit-compress --version
WORKDIR /work
ENTRYPOINT ["dit-compress"]
