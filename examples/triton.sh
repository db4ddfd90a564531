#!/bin/sh
# A model repository for NVIDIA's Triton Inference Server from a bundle, and how it is served.
#
#     castling demo && sh examples/triton.sh castled/digits models
set -eu
castling export "$1" --preprocess --batch 1:8:16 --triton "$2"
find "$2" -type f
cat "$2"/*/config.pbtxt
echo "serve it where Triton is: docker run --rm -p 8000:8000 -v \$PWD/$2:/models nvcr.io/nvidia/tritonserver:VERSION-py3 tritonserver --model-repository=/models"
