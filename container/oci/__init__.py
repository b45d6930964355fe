# SPDX-License-Identifier: Apache-2.0
"""Bundles of the OCI runtime-spec: `load` and `parse` make of a config.json what the library has.

::

    from container import Container, oci

    spec = oci.load("/path/of/the/bundle")
    with Container(spec.config) as box:
        box.run(spec.process)
        box.wait()
"""

from container.oci._parse import Spec, load, parse

__all__ = ["Spec", "load", "parse"]
