#!/bin/sh
# What a GPU shows and no test here could, in ten minutes at most; nothing is downloaded. One Markdown table:
#     sh benchmarks/gpu.sh [FILE.md]                       (benchmarks/measured-gpu.md)
# Without a GPU it says so, and goes through everything once on the CPU at toy size (runs/gpu-dry-run.md), exit status 0.
set -u
cd "$(dirname "$0")/.." || exit 2
for PYTHON in .venv/bin/python python python3; do
  command -v "$PYTHON" >/dev/null 2>&1 && "$PYTHON" -c "import dit_compress" 2>/dev/null && break
done
export CUBLAS_WORKSPACE_CONFIG=:4096:8   # else deterministic products of matrices warn, and are not
exec "$PYTHON" benchmarks/gpu.py ${1:+--out "$1"}
