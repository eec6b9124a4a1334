#!/bin/sh
# Install med_assets and what it needs: `sh deploy/install.sh PYTHON EXTRAS`, in the repository's folder. PYTHON is that of a virtual
# environment, EXTRAS are those of pyproject.toml by comma. `make setup` and the images run it, so all of them install the same.
# TORCH_INDEX may name a package index beside pip's own with a build of torch for this machine, such as one without CUDA.
set -eu
python=$1
extras=$2
torch=$(grep '^torch==' constraints.txt)
# torch comes first and alone, so that a wheel for this machine (CPU or CUDA) is chosen before anything depends on it.
"$python" -m pip install --quiet --no-compile ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} "$torch" -c constraints.txt
"$python" -m pip install --quiet --no-compile --editable ".[$extras]" -c constraints.txt
# pip would compile 30,000 files on one core. Some are templates, which compile nowhere.
"$python" -c 'import compileall, sysconfig; compileall.compile_dir(sysconfig.get_path("purelib"), quiet=2, workers=0)'
