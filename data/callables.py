"""The public, documented callables of the scientific packages, each under its shortest public name."""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType

# Modules that hold a package's documented interface. A list rather than a walk: walking imports private, deprecated and
# test modules, which warn, are slow and differ from release to release. `numpy.ma` and `scipy.stats.mstats` stay out: they
# repeat other modules' functions nearly word for word, so that no sentence could tell the two apart.
PACKAGES: dict[str, str] = {
    "numpy": """
        . ctypeslib fft lib lib.recfunctions lib.scimath lib.stride_tricks linalg polynomial polynomial.chebyshev
        polynomial.hermite polynomial.hermite_e polynomial.laguerre polynomial.legendre polynomial.polynomial random rec
        strings testing""",
    "scipy": """
        cluster.hierarchy cluster.vq constants datasets differentiate fft integrate interpolate io io.arff io.matlab
        io.wavfile linalg linalg.interpolative ndimage odr optimize signal signal.windows sparse sparse.csgraph
        sparse.linalg spatial spatial.distance spatial.transform special stats stats.contingency stats.qmc
        stats.sampling""",
    "sklearn": """
        . base calibration cluster compose covariance cross_decomposition datasets decomposition discriminant_analysis
        dummy ensemble feature_extraction feature_extraction.image feature_extraction.text feature_selection frozen
        gaussian_process gaussian_process.kernels impute inspection isotonic kernel_approximation kernel_ridge
        linear_model manifold metrics metrics.cluster metrics.pairwise mixture model_selection multiclass multioutput
        naive_bayes neighbors neural_network pipeline preprocessing random_projection semi_supervised svm tree utils
        utils.class_weight utils.extmath utils.graph utils.multiclass utils.sparsefuncs utils.validation""",
    "torch": """
        . autograd autograd.functional distributions distributions.constraints fft func linalg nn nn.attention
        nn.functional nn.init nn.utils nn.utils.parametrizations nn.utils.parametrize nn.utils.prune nn.utils.rnn optim
        optim.lr_scheduler optim.swa_utils random signal.windows sparse special utils.checkpoint utils.data""",
}


@dataclass(frozen=True)
class PublicCallable:
    """One documented callable: its shortest public `name`, its docstring, and every public path that leads to it."""

    name: str
    doc: str
    paths: tuple[str, ...]


def modules(package: str) -> list[str]:
    """Return the full names of the modules that are read for `package`."""
    return [package if name == "." else f"{package}.{name}" for name in PACKAGES[package].split()]


def collect(
    package: str, names: Sequence[str] | None = None, progress: Callable[[str], None] | None = None
) -> list[PublicCallable]:
    """Return the documented callables of `names`, modules of `package` (all known ones by default), sorted by name.

    Aliases are one callable, found by identity. Its name is the path with the fewest dots, then the one that ends in
    the object's own `__name__`, then the first in the alphabet. Raises ModuleNotFoundError where the package is missing.
    """
    objects: dict[int, object] = {}  # keeps them alive, so that an id stays theirs
    paths: dict[int, list[str]] = {}
    # Touching deprecated attributes warns; the reader of the demo's log can do nothing about it.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in modules(package) if names is None else names:
            if progress is not None:
                progress(name)
            try:
                module = importlib.import_module(name)
            except ModuleNotFoundError as error:
                if name != package and error.name == name:
                    continue  # another release: scipy.odr, for one, is about to go
                raise
            for attribute in _public(module):
                value = _documented(module, attribute, package)
                if value is not None:
                    objects[id(value)] = value
                    paths.setdefault(id(value), []).append(f"{name}.{attribute}")
        made = [_callable(value, sorted(paths[key])) for key, value in objects.items()]
    return sorted(made, key=lambda found: found.name)


def _public(module: ModuleType) -> list[str]:
    names = getattr(module, "__all__", None) or dir(module)
    return sorted({name for name in names if not name.startswith("_")})


def _documented(module: ModuleType, attribute: str, package: str) -> object | None:
    """Return the callable if it is the package's own and documented, else None."""
    try:
        value = getattr(module, attribute, None)
    except ImportError:  # scikit-learn's experimental estimators ask for an extra import
        return None
    if value is None or isinstance(value, ModuleType) or not callable(value):
        return None
    home = getattr(value, "__module__", None) or package
    if home.partition(".")[0] != package:
        return None
    # Without __all__, what a module imported for its own use is not its interface; torch's builtins live in torch._C.
    if not hasattr(module, "__all__") and not home.startswith((module.__name__, f"{package}._")):
        return None
    if isinstance(value, type) and issubclass(value, BaseException):
        return None
    doc = inspect.getdoc(value)
    # An instance without a docstring of its own shows its class's; the class speaks for itself.
    return value if doc and (isinstance(value, type) or doc != inspect.getdoc(type(value))) else None


def _callable(value: object, paths: list[str]) -> PublicCallable:
    own = getattr(value, "__name__", "")
    name = min(paths, key=lambda path: (path.count("."), path.rpartition(".")[2] != own, path))
    return PublicCallable(name, inspect.getdoc(value) or "", tuple(paths))
