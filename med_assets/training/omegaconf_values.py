"""OmegaConf's containers in files of weights: the classes that opening such a file may make, and their values in plain Python."""

from collections import defaultdict
from typing import Any

from med_assets.errors import CheckpointMismatch


def safe_classes() -> tuple[Any, ...]:
    """Return the closed list of classes that a pickled DictConfig or ListConfig of values from YAML consists of.

    For `torch.serialization.safe_globals`: none of them runs code of the file. Nodes of paths, enumerations and structured
    configurations are not among them.
    """
    from omegaconf.base import ContainerMetadata, Metadata
    from omegaconf.dictconfig import DictConfig
    from omegaconf.listconfig import ListConfig
    from omegaconf.nodes import AnyNode, BooleanNode, FloatNode, IntegerNode, StringNode

    nodes = (AnyNode, BooleanNode, FloatNode, IntegerNode, StringNode)
    # What the nodes and their metadata state as types, and the empty cache of resolvers.
    types = (Any, dict, list, int, str, float, bool, defaultdict)
    return (DictConfig, ListConfig, ContainerMetadata, Metadata, *nodes, *types)


def plain_values(value: Any) -> Any:
    """Return a value with dictionaries and lists in place of OmegaConf's. Interpolations stay text: none is resolved.

    Raises CheckpointMismatch for a container that is not whole.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if OmegaConf.is_config(value):
        try:
            return OmegaConf.to_container(value, resolve=False)
        except (OmegaConfBaseException, AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise CheckpointMismatch(
                f"expected a readable configuration in the file, OmegaConf failed with {type(error).__name__}; get the file again"
            ) from error
    if isinstance(value, dict):
        return {key: plain_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_values(item) for item in value]
    return value
