"""Registers the made-up architecture in each process of a test: as if transformers had it."""

import importlib
import importlib.abc
import importlib.util
import sys

#: when the first of these is there, the second is imported
_AFTER = {
    "transformers.models.auto.configuration_auto": "made_up_config",
    "transformers.models.auto.modeling_auto": "made_up",
}


class _AfterTransformers(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name not in _AFTER:
            return None
        ours = _AFTER.pop(name)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def load_and_register(module):
            load(module)
            importlib.import_module(ours)

        spec.loader.exec_module = load_and_register
        return spec


sys.meta_path.insert(0, _AfterTransformers())
