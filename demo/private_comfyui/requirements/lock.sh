#!/bin/sh
# Makes comfyui.txt, tools.txt and ray.txt anew from the .in files. Needs uv.
cd "$(dirname "$0")" || exit 1
lock() { uv pip compile --universal --python-version 3.10 --no-header --no-annotate -q "$@"; }
printf 'torch==2.13.0\ntorchvision==0.28.0\n' > /tmp/vcut-torch.txt
# torch itself and what it pulls in are installed before, in the build that fits the machine.
lock comfyui.in -c /tmp/vcut-torch.txt | grep -vE '^(torch|torchvision|triton|cuda-[a-z]+|nvidia-[a-z0-9-]+)==' > comfyui.txt
lock tools.in -c comfyui.txt > tools.txt
lock ray.in -c tools.txt > ray.txt
