"""Operator classes: what kinds of operations there are, as rulesets name them and rules stand on them.

The classes are values in a registry, :data:`CLASSES`, with a constant for each that fxlrp brings (``LINEAR``, ``ADD``).
They are no :class:`enum.Enum`, since that is closed once it is written: a model may bring an operator of a class that
nobody thought of, and :func:`register_class` is all that it then takes. Two classes are equal if their names are, so
copies of a class are the class, and registering a name again replaces what was said of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fxlrp.errors import RulesetError, nearest


@dataclass(frozen=True)
class OperatorClass:
    """A class of operations, by its ``name`` in rulesets (and other names for it, ``aliases``).

    ``wider`` is the class that it is a case of: what is said of that holds of it. ``keeps``: the plain gradient keeps
    relevance by itself, as that of linear maps, sums and homogeneous selections does. ``joins``: sums of linear maps
    are made of it. ``weighted``: a layer of a network, an input times weights plus a bias. ``ruled``: rules can stand
    on it; not so where arguments decide first what the operation is, and where nothing carries relevance.
    """

    name: str
    wider: OperatorClass | None = field(default=None, compare=False)
    keeps: bool = field(default=False, compare=False)
    joins: bool = field(default=False, compare=False)
    weighted: bool = field(default=False, compare=False)
    ruled: bool = field(default=True, compare=False)
    aliases: tuple[str, ...] = field(default=(), compare=False)

    def __str__(self) -> str:
        return self.name

    @property
    def lineage(self) -> tuple[OperatorClass, ...]:
        """The class itself, then the wider ones, the widest last."""
        return (self,) if self.wider is None else (self, *self.wider.lineage)

    def within(self, other: OperatorClass) -> bool:
        """Whether it is the class ``other`` or a case of it."""
        return other in self.lineage


#: Every operator class by its name.
CLASSES: dict[str, OperatorClass] = {}


def register_class(made: OperatorClass) -> OperatorClass:
    """Tell fxlrp of an operator class: from now on rulesets can name it, rules stand on it, and operators be of it."""
    CLASSES[made.name] = made
    return made


def find_class(name: str | OperatorClass) -> OperatorClass:
    """The class of this name or alias. Raises :class:`RulesetError` with the nearest valid name."""
    found = name if isinstance(name, OperatorClass) else CLASSES.get(class_name(name))
    if found is None:
        raise RulesetError(f"There is no operator class '{name}'.{nearest(str(name), ruled_names())}")
    return found


def class_name(name: str) -> str:
    """The name of the class that has the alias ``name``; any other name as it is."""
    return next((known.name for known in CLASSES.values() if name in known.aliases), name)


def ruled_names() -> frozenset[str]:
    """The names of the classes that rules can stand on."""
    return frozenset(name for name, known in CLASSES.items() if known.ruled)


LINEAR = register_class(OperatorClass("linear", keeps=True, joins=True, weighted=True))
CONVOLUTION = register_class(OperatorClass("convolution", keeps=True, weighted=True, aliases=("conv",)))
#: A matrix product, one factor of which was computed from the inputs but carries no relevance.
MIXING = register_class(OperatorClass("mixing", keeps=True))
#: An elementwise product with, or quotient by, a value that carries no relevance.
SCALE = register_class(OperatorClass("scale", keeps=True))
PRODUCT = register_class(OperatorClass("product", aliases=("matmul",)))
#: A product by a divisor: a quotient in another spelling.
DIVISION = register_class(OperatorClass("division", wider=PRODUCT))
QUOTIENT = register_class(OperatorClass("quotient"))
ACTIVATION = register_class(OperatorClass("activation", aliases=("act",)))
#: A function with no value at zero: logarithms, reciprocals, a constant over a value.
SINGULAR = register_class(OperatorClass("singular"))
#: One of them that only divides other values that depend on the input: a reciprocal, a root of a variance.
DIVISOR = register_class(OperatorClass("divisor", wider=SINGULAR))
SOFTMAX = register_class(OperatorClass("softmax"))
#: A softmax that nothing but outputs are made of, entry by entry: the logits of a prediction go in.
PREDICTION = register_class(OperatorClass("prediction", wider=SOFTMAX))
SELECTION = register_class(OperatorClass("selection", keeps=True))
RECTIFIER = register_class(OperatorClass("rectifier", wider=SELECTION, keeps=True))
#: A value taken to a grid: to whole numbers, to those that some bits can hold.
ROUNDING = register_class(OperatorClass("rounding"))
SUM = register_class(OperatorClass("sum", keeps=True))
ADD = register_class(OperatorClass("add", keeps=True, joins=True))
#: An addition of which one term carries relevance.
SHIFT = register_class(OperatorClass("shift", wider=ADD, keeps=True, joins=True))
#: A tree of additions, scalings and moves over linear maps, taken as one.
AFFINE = register_class(OperatorClass("affine"))
MOVEMENT = register_class(OperatorClass("movement", keeps=True))
#: The choice of some entries of an axis, as pooling by one token is.
INDEX = register_class(OperatorClass("index", wider=MOVEMENT, keeps=True))
GENERAL = register_class(OperatorClass("general"))
#: The value at which a skip connection begins.
FORK = register_class(OperatorClass("fork"))
#: Whatever the operation is.
ANY = register_class(OperatorClass("any"))
#: A product of matrices: linear, mixing or product, as its factors carry relevance.
MATMUL = register_class(OperatorClass("matmul", ruled=False))
#: Nothing carries relevance through it.
CONSTANT = register_class(OperatorClass("constant", ruled=False))
