"""Names that worlds give to people, programs and things. The first ones are common words; larger worlds get invented ones."""

from itertools import product

_PEOPLE = """
    ada alan alma amos anna arlo asa bea beth bo cara carl cleo cora dan dora ed ella emil enid eric eva fay finn flo gail
    gus hal hana hugo ida igor ines ira ivan iris jack jana joel june karl kate kim lara leo lena liam lola luis mara max
    mia nell nina noah olga oscar otto paul pia ralf rosa sara tom
"""
_RELATIONS = """
    boss friend teacher doctor neighbor partner rival mentor cousin guide lawyer tailor barber banker trainer agent
"""
_PROGRAMS = """
    amber birch cedar delta ember frost grove haven ivory jade kite lotus maple north ocean pearl quartz ridge stone topaz
    umber vapor willow zephyr
"""
_THINGS = """
    lamp tree moss door bird corn drum fish gate hill ice leaf milk nest rope salt tent vine wind yarn
"""
_ITEMS = """
    pen cup key book ball fork hat bag coin map sock bell
"""
_PLACES = """
    red blue green black white gold gray pink
"""
PEOPLE = tuple(_PEOPLE.split())
RELATIONS = tuple(_RELATIONS.split())
PROGRAMS = tuple(_PROGRAMS.split())
THINGS = tuple(_THINGS.split())
ITEMS = tuple(_ITEMS.split())
PLACES = tuple(_PLACES.split())


def names(common: tuple[str, ...], count: int) -> tuple[str, ...]:
    """The first `count` names: the common ones, then invented ones of two or more syllables that differ from them."""
    if count <= len(common):
        return common[:count]
    found = list(common)
    syllables = ["".join(pair) for pair in product("bdfgklmnprstvz", "aeiou")]
    taken = set(common)
    for length in (2, 3, 4):
        for parts in product(syllables, repeat=length):
            if len(found) >= count:
                return tuple(found)
            name = "".join(parts)
            if name not in taken:
                found.append(name)
    return tuple(found)
