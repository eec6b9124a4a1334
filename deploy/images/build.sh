#!/bin/sh
# Build the image, check it, and push it where a name is given: `sh deploy/images/build.sh cpu|cuda [REGISTRY/NAME]`, in the repository's
# folder. ENGINE is docker, or podman; TORCH_INDEX is a package index with a build of torch without CUDA, see docs/images.md.
set -eu
accelerator=${1:-}
target=${2:-}
engine=${ENGINE:-docker}
case $accelerator in cpu | cuda) ;; *)
  echo "build.sh: expected cpu or cuda, got '$accelerator'" >&2
  exit 2 ;;
esac
version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' med_assets/__init__.py)
commit=$(git rev-parse HEAD)$(test -z "$(git status --porcelain)" || echo +dirty)
tag=$version-$accelerator
case $target$commit in ?*/*+dirty)
  echo "build.sh: expected a commit without local changes, since an image that others pull must be found again in git" >&2
  exit 2 ;;
esac
# Without it podman leaves out the check of the health; docker takes no notice.
export BUILDAH_FORMAT=docker
"$engine" build --file deploy/images/Dockerfile --build-arg "ACCELERATOR=$accelerator" --build-arg "TORCH_INDEX=${TORCH_INDEX:-}" \
  --build-arg "COMMIT=$commit" --tag "med-assets:$tag" .
# As it is run later: no root, nothing writable but /tmp, no network. The key is made for this check and kept nowhere.
MED_ASSETS_PSEUDONYM_KEY=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export MED_ASSETS_PSEUDONYM_KEY
"$engine" run --rm --read-only --tmpfs /tmp --network none --cap-drop ALL --env MED_ASSETS_PSEUDONYM_KEY --env MED_ASSETS_HOME=/tmp/home \
  "med-assets:$tag" sh -c 'test "$(id -u)" -ne 0 && med-assets doctor'
if [ -n "$target" ]; then
  "$engine" tag "med-assets:$tag" "$target:$tag"
  "$engine" push "$target:$tag"
fi
