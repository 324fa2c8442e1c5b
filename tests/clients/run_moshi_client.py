"""Runs the client of the package ``moshi`` unchanged, without what else the package needs.

Its ``__init__`` imports PyTorch, of which the client uses nothing.
"""

import importlib.util
import runpy
import sys
import types

found = importlib.util.find_spec("moshi")
assert found is not None
assert found.submodule_search_locations
package = types.ModuleType("moshi")
package.__path__ = list(found.submodule_search_locations)
sys.modules["moshi"] = package
runpy.run_module("moshi.client", run_name="__main__", alter_sys=True)
