"""English for properties that ontologies often have: what stands around their objects, of what kind these are, and short closed lists.

Property names are those of Wikidata and schema.org in lower case. The signs are those of :mod:`interfuse.kit.relation_evidence`. What
is not here is derived from the property's own name: see :func:`signs_of_name`.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field

from interfuse.kit.language import lemma_of

_AGENTS = ("er", "or")
_PREPOSITIONS = ("by", "in", "at", "on", "of", "from", "to", "with", "for", "as", "into", "after")


@dataclass(frozen=True)
class Speech:
    """How a property is spoken of.

    Attributes:
        signs: sign -> how sure it is. kinds: of names that may be objects; empty: any name.
        values: name of a closed list of :data:`LISTS` that its objects are from. dates: its objects are dates.
        phrase: objects may be phrases in lower case. alone: a value of the list says it without a sign.
        whole: a value of the list stands for the name that it is part of.
        drop: last words that do not belong to its objects (a *comedy film* is of the genre comedy).
        heads: first or last words (in lower case) of names that are objects without a sign.
    """

    signs: dict[str, float] = field(default_factory=dict)
    kinds: tuple[str, ...] = ()
    values: str = ""
    dates: bool = False
    phrase: bool = False
    alone: bool = False
    whole: bool = False
    heads: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()


def _by(verbs: str, sure: float = 0.85) -> dict[str, float]:
    """``made by X``, ``X made it``."""
    found: dict[str, float] = {}
    for v in verbs.split():
        found |= {f"{v} by": sure, f"{v} <": sure - 0.15}
    return found


def _after(words: str, marks: str, sure: float = 0.8) -> dict[str, float]:
    return {f"{w} {m}": sure for w in words.split() for m in marks.split()}


def _role(nouns: str, sure: float = 0.8) -> dict[str, float]:
    """``its director X``, ``X, the director``, ``the director is X``."""
    found: dict[str, float] = {}
    for n in nouns.split():
        n = n.replace("_", " ")
        found |= {f", {n}": sure, f"{n} _": sure, f"is {n}": sure, f"{n} is": sure, f"as {n}": sure - 0.2}
    return found


def _raw(words: str, sure: float = 0.8) -> dict[str, float]:
    return {w.strip(): sure for w in words.split("|")}


WORKS = "film movie novel book story play drama album song single opera ballet series game comic poem work cartoon short anime manga symphony piece documentary thriller comedy musical sitcom show episode collection anthology magazine journal newspaper sequel"
_MADE = "release publish issue premiere launch air appear debut"
PEOPLE, PLACES, GROUPS = ("person", "organization", ""), ("place", ""), ("organization", "")

#: property -> how it is spoken of
SPEECH: dict[str, Speech] = {
    "director": Speech(_by("direct co-direct helm") | _role("director filmmaker") | _after("film movie documentary drama comedy thriller cartoon short", "by"), ("person", "")),
    "screenwriter": Speech(_by("write co-write script adapt") | _role("screenwriter writer") | _after("screenplay script", "by") | _raw("write from"), ("person", "")),
    "author": Speech(_raw("edit by | create by | publish <", 0.5) | _by("write author co-write compile compose pen", 0.85) | _role("author writer novelist poet") | _after("novel book story play poem collection series work novella memoir treatise anthology essay biography monograph", "by"), ("person", "")),
    "cast member": Speech(_raw("direct > | voice of | , star", 0.3) | _raw("star > | feature > | include > | star < | star with | feature with | cast of | cast include | portray by | play by | voice by | appear <", 0.75) | _role("actor actress star", 0.7), ("person", "")),
    "producer": Speech(_raw("album by", 0.5) | _by("produce co-produce") | _role("producer record_producer") | _after("production", "by"), ("person", "organization", "")),
    "production company": Speech(_raw("distribute by | film by | film for | short by | direct for", 0.55) | _by("produce make release", 0.55) | _after("produce release make", "at through for", 0.6) | _role("studio company", 0.6), GROUPS, heads=("pictures", "studios", "films", "productions", "entertainment")),
    "distributed by": Speech(_by("distribute release") | _role("distributor"), GROUPS),
    "composer": Speech(_by("compose score write") | _role("composer songwriter") | _after("music score ballet opera symphony suite sonata concerto piece composition work cantata song hymn", "by") | _raw("'s opera | 's ballet | 's symphony | 's song"), ("person", "")),
    "lyrics by": Speech(_raw("song by", 0.4) | _after("lyric text libretto word", "by") | _by("write co-write", 0.7) | _role("lyricist librettist songwriter"), ("person", "")),
    "performer": Speech(_raw("songwriter _", 0.6) | _by("perform record sing release cover") | _after("song album single track ep debut hit ballad record", "by") | _role("singer band group rapper duo musician artist rock_band rapper") | _raw("'s song | 's single | 's album | 's debut", 0.7), PEOPLE),
    "record label": Speech(_raw("album on | _ label", 0.6) | _after("release issue record", "by on through via under", 0.7) | _role("label record_label") | _raw("_ record | sign to | sign with", 0.6), GROUPS, heads=("records", "recordings")),
    "tracklist": Speech(_raw(", single | , hit | , song | cover of", 0.65) | _raw("include > | feature > | contain > | single _ | song _ | track _ | hit _ | include", 0.65), ("work", "", "person", "organization")),
    "part of": Speech(_raw(", album", 0.8) | _raw("album _ | from album | single from | track on | song from | song on | track from | part of | include on | appear on | feature on | movement of | release from | single off | soundtrack _", 0.75)),
    "publisher": Speech(_by("publish release issue") | _role("publisher") | _after("publish", "through with under", 0.7), GROUPS),
    "editor": Speech(_raw("is > | journal by | establish by", 0.4) | _by("edit co-edit found") | _role("editor editor-in-chief founder") | _after("anthology", "by"), ("person", "")),
    "illustrator": Speech(_raw("book by", 0.4) | _by("illustrate draw paint") | _role("illustrator artist") | _after("illustration art artwork drawing", "by"), ("person", "")),
    "developer": Speech(_by("develop create make design") | _role("developer") | _after("game", "by"), PEOPLE),
    "creator": Speech(_raw("found by | start by | host by | compose by", 0.5) | _by("create make paint write develop design conceive draw invent build sculpt") | _role("creator") | _after("painting drawing fresco sculpture portrait work altarpiece", "by"), PEOPLE),
    "designed by": Speech(_by("design develop make manufacture produce build invent create") | _role("designer manufacturer"), PEOPLE),
    "manufacturer": Speech(_by("make manufacture build produce") | _role("manufacturer"), GROUPS),
    "discoverer or inventor": Speech(_by("discover invent create develop introduce describe") | _role("inventor discoverer"), ("person", "organization", "")),
    "founded by": Speech(_by("found co-found establish start form set") | _role("founder co-founder"), PEOPLE),
    "architect": Speech(_by("design build") | _role("architect"), ("person", "")),
    "based on": Speech(_raw(", novel | play > | novella _ | , book | , tale | base on | film of", 0.65) | _after("base adapt", "on upon from") | _raw("adaptation of | version of | remake of | novel _ | play _ | book _ | retelling of | inspire by | 's novel | 's play", 0.7), phrase=False),
    "followed by": Speech(_raw("supersede by | , successor", 0.75) | _raw("follow by | sequel _ | sequel is | succeed by | , sequel | precede >", 0.8)),
    "follows": Speech(_raw("sequel to | follow > | follow-up to | succeed >", 0.8)),
    "characters": Speech(_raw("subject in | star as | _ cartoon | _ comic | _ story | _ series | friend _ | , friend | life of | rivalry between", 0.5) | _raw("feature > | star > | character _ | role of | play > | adventure of | about | follow > | , character | introduce > | portray > | character of", 0.6), ("person", "", "place")),
    "main subject": Speech(_raw("about | deal with | film about | documentary about | story of | base on | focus on | chronicle > | explore > | depict > | tell of | drama about", 0.6), phrase=True),
    "depicts": Speech(_raw("depict > | portray > | show > | about | describe >", 0.6), phrase=True),
    "narrative location": Speech(_raw("film in | novel in", 0.3) | _after("set take place happen occur", "in on at near during", 0.8) | _raw("place in | city of | town of | story in", 0.6), PLACES),
    "filming location": Speech(_after("film shoot photograph make", "in at on near around") | _raw("filming in | filming at | shooting in | place in | location in", 0.65), PLACES),
    "location": Speech(_after("locate situate lie stand", "in at on near")),
    "located in": Speech(_after("locate situate lie stand", "in at on near")),
    "country": Speech(_after("locate situate lie city town village", "in of"), PLACES, "countries"),
    "capital": Speech(_role("capital"), PLACES), "capital of": Speech(_raw("capital of"), PLACES),
    "country of origin": Speech(dict.fromkeys([f"_ {w}" for w in WORKS.split()], 0.8) | _after("film series produce make", "in from", 0.5), PLACES, "countries"),
    "country for sport": Speech(_raw("_ player | _ footballer | _ runner | _ swimmer | _ athlete | player from | _ team | _ sprinter | _ jumper | _ skier | _ cyclist | _ boxer | _ wrestler | _ judoka | _ skater | _ driver | _ rower | _ gymnast | _ thrower | _ goalkeeper | _ defender | _ midfielder | _ forward | _ striker | _ weightlifter | _ fencer", 0.7) | _after("compete represent play player runner", "for from", 0.7) | _raw("represent >"), PLACES, "countries"),
    "nationality": Speech({}, PLACES, "countries", alone=True), "country of citizenship": Speech({}, PLACES, "countries", alone=True),
    "publication date": Speech(_after(_MADE, "in on at") | dict.fromkeys([f"_ {w}" for w in WORKS.split()], 0.75) | _raw("release of | year _ | release in | release on | publication in", 0.7), dates=True),
    "inception": Speech(_after("found establish form create start begin launch found open build", "in on at") | _raw("since | beginning in", 0.6), dates=True),
    "start time": Speech(_after("begin start launch open", "in on at"), dates=True), "end time": Speech(_after("end close finish", "in on at"), dates=True),
    "date of birth": Speech(_after("bear born", "in on at >"), dates=True), "date of death": Speech(_after("die kill", "in on at"), dates=True),
    "place of birth": Speech(_after("bear born", "in at"), PLACES), "place of death": Speech(_after("die kill", "in at"), PLACES),
    "spacecraft docking/undocking date": Speech(_after("dock undock", "on in"), dates=True),
    "award received": Speech(_raw("award including | , award", 0.6) | _raw("win > | receive > | win | award > | award by | recipient of | winner of | awarded", 0.75), ("", "event", "work", "organization", "product"), heads=("award", "prize")),
    "nominated for": Speech(_raw("film for", 0.3) | _raw("nominate for | nomination for | nominate > | nominee for | nomination at", 0.8), ("", "event", "work", "organization")),
    "spouse": Speech(_raw("marry > | marry to | wife _ | husband _ | , wife | , husband"), ("person", "")),
    "employer": Speech(_after("work employ", "for at by")), "educated at": Speech(_after("study graduate educate", "at from in") | _raw("attend >")),
    "member of sports team": Speech(_raw("side _ | club _ | career with | debut for | team of | make for", 0.7) | _after("play sign appear pitch captain defender midfielder striker forward goalkeeper footballer join transfer move coach", "for with to at") | _raw("join > | leave > | return to | loan to | play at", 0.7), GROUPS),
    "coach of sports team": Speech(_raw("coach > | manage > | coach of | manager of | coach at | coach for | head coach of | trainer of", 0.8), GROUPS),
    "league": Speech(_raw("promotion to | return to | relegation from | manager of | left for | _ title | _ side | _ match | _ club", 0.55) | _after("play compete team player season club feature participate appear match game goalkeeper", "in of for", 0.65) | _raw("league _ | franchise of | team in | club in | debut in | pick in | draft", 0.6), ("organization", "event", ""), heads=("league", "nba", "nhl", "nfl", "mlb", "premiership", "bundesliga", "mls", "eredivisie", "wnba", "superliga")),
    "sports season of league or competition": Speech(_raw("know as | redirect to | is tournament | establishment of", 0.55) | _raw("season of | edition of | staging of | season for | _ season", 0.8), ("organization", "event", "")),
    "sport": Speech(_raw("play > | compete in", 0.6), values="sports", alone=True),
    "competition class": Speech({}, values="weights", alone=True),
    "occupation": Speech(_raw("is >", 0.8), values="occupations", alone=True, phrase=True),
    "genre": Speech(_raw("is >", 0.7), values="genres", alone=True, phrase=True, drop=tuple(w for w in WORKS.split() if w not in ("novel", "opera", "ballet", "symphony", "drama", "documentary", "cartoon", "thriller", "comedy", "musical", "sitcom", "anthology", "anime", "manga"))), "language of work or name": Speech(_after("write publish sing compose", "in"), values="languages", alone=True),
    "languages spoken, written or signed": Speech(_after("write speak learn translate", "in from") | _raw("learn > | speak >"), values="languages", alone=True),
    "voice type": Speech(_raw("singer _", 0.6) | {}, values="voices", alone=True), "instrumentation": Speech(_raw("composition for | arrangement for", 0.8) | _after("write compose score arrange sonata work piece", "for"), values="instruments", alone=True),
    "ethnic group": Speech({}, values="peoples", alone=True),
    "military rank": Speech(_after("promote rank rise", "to of", 0.7), values="ranks", alone=True), "military branch": Speech(_raw("general in | join > | commander of | service in | transfer to", 0.6) | _after("serve enlist join officer commission pilot member", "in of with for", 0.75), values="forces", alone=True, whole=True),
    "military casualty classification": Speech({}, values="casualties", alone=True), "wing configuration": Speech({}, values="wings", alone=True),
    "designated as terrorist by": Speech(_raw("designate by | list by | organization by | designated by | consider by | classify by | blacklist by"), ("place", "organization", ""), "countries"),
    "next higher rank": Speech(_raw("below | rank below | junior to | follow by", 0.7)),
    "platform": Speech(_after("release develop port game available launch version", "for on to", 0.6), values="platforms", alone=True),
    "operating system": Speech(_after("run ship", "on with"), values="systems", alone=True), "distribution format": Speech(_after("release", "on"), values="formats", alone=True),
    "CPU": Speech(_raw("use > | power by | processor _ | base on | have >", 0.6), heads=("processor", "snapdragon", "pentium")), "derivative work": Speech(_raw("basis for | adapt into | inspire > | remake as", 0.75)),
    "uses": Speech(_raw("use > | utilize >", 0.7), phrase=True), "named after": Speech(_after("name call", "after for") | _raw("honor of | honour of")), "implementation of": Speech(_raw("implementation of | implement >")),
    "site of astronomical discovery": Speech(_raw("discover at | observe at | astronomer at | discover by | discover from | observatory _ | observe from | telescope at", 0.8) | _after("identify find discovery", "at from"), ("place", "organization", ""), heads=("observatory", "observatories")),
    "constellation": Speech(_raw(", constellation | away in | constellation at", 0.7) | _raw("constellation of | constellation _ | _ constellation | locate in", 0.85), values="constellations", alone=True),
    "astronaut mission": Speech(_raw("fly on | fly aboard | aboard | mission _ | crew of | pilot of | commander of | specialist on | member of | launch on | flight on | fly >", 0.75), ("", "product", "work", "event", "organization", "place", "number"), heads=("apollo", "gemini", "soyuz", "sts-1", "expedition", "skylab", "mercury-redstone", "shenzhou", "vostok", "voskhod", "spacex")),
    "minor planet group": Speech(_raw("is >", 0.5) | {}, values="asteroids", alone=True), "location of landing": Speech(_after("land touch crash", "in on at near"), PLACES),
    "backup or reserve team or crew": Speech(_raw("backup for | backup to | crew of", 0.7)),
    "position held": Speech(_raw("serve as | elect as | elect > | appoint as | appoint > | become > | is > | as | position of | post of | office of | member of | president", 0.6), values="offices", alone=False, phrase=True),
    "member of political party": Speech(_raw("member of | join > | candidate of | leader of | politician of | politician from | candidate for | run for | represent > | _ politician", 0.65), GROUPS, "parties", alone=True, whole=True, heads=("party", "democrats")),
    "political ideology": Speech({}, values="ideologies", alone=True), "member of": Speech(_raw("fellow of | band _ | , band | , group | group _ | form > | found >", 0.65) | _raw("member of | join > | belong to | be part of", 0.7), GROUPS),
    "head of state": Speech(_role("president king queen monarch emperor")), "head of government": Speech(_role("prime_minister premier mayor chancellor governor")),
    "candidacy in election": Speech(_raw("candidate in | run in | stand in | contest > | run for | nominee in | elect in | candidate for", 0.75), heads=("election",)),
    "parent taxon": Speech(_raw(", genus | genus in | , order | , family", 0.8) | _raw("species of | genus of | family _ | genus _ | subfamily _ | family of | order _ | plant in | species in | belong to | subspecies of | moth of | beetle in", 0.8), phrase=False),
    "taxon synonym": Speech(_raw("synonym of | know as | synonym _ | formerly | syn | synonym is | call", 0.75)), "mountain range": Speech(_raw("side of | m in | situate in | peak on | extremity of", 0.55) | _raw("part of | locate in | mountain in | peak in | peak of | mountain of | summit in | summit of | lie in | in range | rise in | volcano in | _ range", 0.65), PLACES, heads=("range", "mountains", "alps", "ridge", "massif", "hills", "cordillera", "andes", "pyrenees")),
    "parent peak": Speech(_raw("lie of | close to | top of", 0.6) | _raw("north of | south of | east of | west of | southwest of | northwest of | northeast of | southeast of | culminate at | culminate in | summit of | peak of | shoulder of | below | ridge of | massif of", 0.7), PLACES),
    "mouth of the watercourse": Speech(_after("flow empty drain discharge tributary join run fall enter pour confluence", "into to of in with", 0.8) | _raw("join > | enter > | tributary _ | meet >", 0.7), PLACES),
    "origin of the watercourse": Speech(_raw("originate near | originate from | issue from | northwest from | lake _", 0.7) | _raw("drain > | rise in | rise at | originate in | originate at | flow from | begin at | begin in | flow out | source in | rise on | emerge from | start in | source is | outflow of | outlet of | spring from | rise from | source at", 0.8), PLACES),
    "tributary": Speech(_raw(", tributary", 0.7) | _raw("tributary is | is tributary | tributary include | tributary _ | include > | join by | feed by | confluence of | receive > | flow <", 0.7), PLACES),
    "reservoir created": Speech(_raw("call > | , reservoir | , lake | create << | create at", 0.7) | _raw("create > | impound > | form > | creating > | reservoir _ | lake _ | is reservoir | reservoir is | impound in | form by | dam >", 0.75), PLACES, heads=("reservoir",)),
    "mountains classification": Speech(_raw("list of | munro | classify as | marilyn | list as", 0.6)), "drainage basin": Speech(_raw("part of | basin of | drain into | _ basin | drainage _ | watershed of", 0.7), PLACES, heads=("basin",)),
    "discharge": Speech({}), "dedicated to": Speech(_raw("dedicate to")), "population": Speech(_raw("population of | inhabitant | is population | population is")), "head": Speech(_role("head")),
}  # fmt: skip

_COUNTRIES = (
    "Afghanistan:Afghan Albania:Albanian Algeria:Algerian Argentina:Argentine,Argentinian Armenia:Armenian Australia:Australian Austria:Austrian Azerbaijan:Azerbaijani "
    "Bangladesh:Bangladeshi Belarus:Belarusian Belgium:Belgian Bolivia:Bolivian Brazil:Brazilian Bulgaria:Bulgarian Cambodia:Cambodian Cameroon:Cameroonian Canada:Canadian "
    "Chile:Chilean China:Chinese Colombia:Colombian Croatia:Croatian Cuba:Cuban Cyprus:Cypriot Czechoslovakia:Czechoslovak Denmark:Danish Ecuador:Ecuadorian Egypt:Egyptian "
    "England:English Estonia:Estonian Ethiopia:Ethiopian Finland:Finnish France:French Georgia: Germany:German Ghana:Ghanaian Greece:Greek Hungary:Hungarian Iceland:Icelandic "
    "India:Indian Indonesia:Indonesian Iran:Iranian Iraq:Iraqi Ireland:Irish Israel:Israeli Italy:Italian Jamaica:Jamaican Japan:Japanese Jordan:Jordanian Kazakhstan:Kazakhstani,Kazakh "
    "Kenya:Kenyan Kuwait:Kuwaiti Latvia:Latvian Lebanon:Lebanese Libya:Libyan Lithuania:Lithuanian Luxembourg: Malaysia:Malaysian Mexico:Mexican Moldova:Moldovan Mongolia:Mongolian "
    "Morocco:Moroccan Nepal:Nepalese,Nepali Netherlands:Dutch Nigeria:Nigerian Norway:Norwegian Pakistan:Pakistani Peru:Peruvian Philippines:Filipino,Philippine Poland:Polish "
    "Portugal:Portuguese Qatar:Qatari Romania:Romanian Russia:Russian Scotland:Scottish Senegal:Senegalese Serbia:Serbian Singapore:Singaporean Slovakia:Slovak Slovenia:Slovenian,Slovene "
    "Spain:Spanish Sudan:Sudanese Sweden:Swedish Switzerland:Swiss Syria:Syrian Taiwan:Taiwanese Tanzania:Tanzanian Thailand:Thai Tunisia:Tunisian Turkey:Turkish Uganda:Ugandan "
    "Ukraine:Ukrainian Uruguay:Uruguayan Uzbekistan:Uzbekistani Venezuela:Venezuelan Vietnam:Vietnamese Wales:Welsh Yemen:Yemeni Yugoslavia:Yugoslav Zambia:Zambian Zimbabwe:Zimbabwean "
    "United_States:American United_Kingdom:British New_Zealand: South_Africa: South_Korea: North_Korea: Soviet_Union:Soviet Hong_Kong: Sri_Lanka: Saudi_Arabia:Saudi Puerto_Rico: "
    "Czech_Republic:Czech Ivory_Coast:Ivorian Costa_Rica: United_Arab_Emirates:Emirati European_Union:"
)  # fmt: skip
#: closed lists: the words of a text in lower case -> how the value is written
_PLAIN: dict[str, str] = {
    "sports": "basketball=basketball|basketball player=basketball|baseball|association football|football=association football|soccer=association football|footballer=association football|tennis|ice hockey|hockey=ice hockey|"
    "american football|rugby union|rugby league|cricket|volleyball|handball|golf|swimming|swimmer=swimming|athletics|track and field=athletics|boxing|boxer=boxing|wrestling|judo|judoka=judo|karate|fencing|fencer=fencing|rowing|rower=rowing|sailing|"
    "cycling|cyclist=cycle sport|cricketer=cricket|golfer=golf|badminton|table tennis|squash|snooker|darts|chess|figure skating|figure skater=figure skating|speed skating|alpine skiing|cross-country skiing|ski jumping|biathlon|curling|bobsleigh|luge|gymnastics|"
    "artistic gymnastics|weightlifting|weightlifter=weightlifting|archery|shooting|water polo|field hockey|lacrosse|softball|netball|surfing|snowboarding|triathlon|mixed martial arts|kickboxing|taekwondo|sumo|motorsport|formula one|rallying|polo|bandy|futsal|australian rules football|"
    "gaelic football|hurling|canadian football|rugby=rugby union|equestrian|diving|skateboarding|bowling|racing|auto racing|beach volleyball|sprint canoe",
    "weights": "flyweight|bantamweight|featherweight|lightweight|welterweight|middleweight|light heavyweight|heavyweight|cruiserweight|super featherweight|super middleweight|light welterweight|light middleweight|light flyweight|half-middleweight|half-heavyweight|half-lightweight|super heavyweight|under-20|under-21=under-21|under-17=under-17|women's|men's|junior",
    "genres": "drama|comedy|romantic comedy|horror|thriller|western|science fiction|fantasy|documentary|animation|musical|film noir|crime|action|adventure|melodrama|biographical|war|silent film|rock|pop|hip hop|jazz|blues|country music|folk|soul|rhythm and blues|electronic|house|techno|heavy metal|punk|reggae|opera|symphony|ballet|concerto|sonata|"
    "novel|poetry|historical novel|detective|mystery|satire|fairy tale|epic|tragedy|gothic|memoir|biography|comedy-drama|comedy horror|action film|dance-pop|synthpop|indie rock|alternative rock|hard rock|progressive rock|folk rock|power ballad|doo-wop|disco|funk|gospel|ambient|grunge|new wave|autobiography|children's literature|high fantasy|dystopian|superhero|speculative fiction|short story|anthology",
    "languages": "english|french|german|spanish|italian|portuguese|russian|latin|greek|japanese|chinese|korean|arabic|hebrew|sanskrit|hindi|urdu|bengali|tamil|telugu|malayalam|kannada|marathi|punjabi|dutch|swedish|norwegian|danish|finnish|polish|czech|hungarian|romanian|turkish|persian|welsh|irish|scots|gaelic|esperanto|yiddish|vietnamese|thai|indonesian|malay|swahili|ukrainian|catalan|basque|old english|middle english|old norse|mandarin|cantonese",
    "voices": "soprano|mezzo-soprano|contralto|alto|countertenor|tenor|baritone|bass-baritone|bass|coloratura soprano|treble",
    "instruments": "piano|violin|viola|cello|double bass|flute|oboe|clarinet|bassoon|horn|trumpet|trombone|tuba|harp|organ|guitar|percussion|timpani|orchestra|string quartet|choir|voice|harpsichord|saxophone|recorder|lute|drums|mandolin|strings|celesta",
    "ranks": "private|corporal|sergeant|lance corporal|second lieutenant|first lieutenant|lieutenant|captain|major|lieutenant colonel|colonel|brigadier|brigadier general|major general|lieutenant general|general|field marshal|marshal|admiral|rear admiral|vice admiral|commander|lieutenant commander|commodore|ensign|air marshal|air chief marshal|air vice marshal|wing commander|squadron leader|flight lieutenant|flying officer|group captain|staff sergeant|sergeant major|general of the army|admiral of the fleet|fleet admiral|sub-lieutenant|generalmajor|chief petty officer",
    "forces": "army|navy|air force|marines|marine corps|infantry|cavalry|artillery|coast guard|royal navy|royal air force|british army|united states army|united states navy|united states marine corps|united states air force|united states coast guard|luftwaffe|wehrmacht|waffen-ss|kriegsmarine|red army|indian army|indian navy|indian air force|royal australian air force|royal australian navy|australian army|canadian army|royal canadian air force|royal canadian navy|french army|french navy|imperial japanese navy|imperial japanese army|royal marines|us army=united states army|u.s. army=united states army|u.s. navy=united states navy|us navy=united states navy|u.s. air force=united states air force|us air force=united states air force|u.s. marine corps=united states marine corps|confederate states army|union army|people's liberation army|royal flying corps|swiss air force|polish army|german army|italian army|regia aeronautica|soviet air force",
    "casualties": "killed in action|prisoner of war|missing in action|wounded in action|died of wounds|accidental death", "wings": "high-wing|low-wing|mid-wing|biplane|monoplane|triplane|delta wing|swept wing|flying wing",
    "platforms": "playstation|playstation 2|playstation 3|playstation 4|playstation 5|playstation portable|playstation vita|xbox|xbox 360|xbox one|nintendo ds|nintendo 3ds|nintendo 64|nintendo switch|nintendo entertainment system|super nintendo entertainment system|wii|wii u|gamecube|game boy|game boy color|game boy advance|sega genesis|sega saturn|sega cd|dreamcast|master system|game gear|amiga|atari st|atari 2600|atari 5200|atari 8-bit family|commodore 64|zx spectrum|amstrad cpc|msx|bbc micro|acorn electron|apple ii|ms-dos=ms-dos|dos=ms-dos|microsoft windows|windows=microsoft windows|mac os|macos|os x|linux|android|ios|ipad|iphone|pc-98|sharp x68000|turbografx-16|neo geo|arcade|vic-20|xbox series x",
    "systems": "linux|microsoft windows|windows|macos|mac os x|os x|android|ios|unix|ms-dos|freebsd|symbian|chrome os|debian|ubuntu|windows phone|blackberry", "formats": "cd-rom|dvd|dvd-rom|blu-ray|blu-ray disc|cassette|rom cartridge|cartridge|floppy disk|download|digital distribution|compact disc|laserdisc|umd|sega cd",
    "constellations": "andromeda|antlia|apus|aquarius|aquila|ara|aries|auriga|bootes|boötes|caelum|camelopardalis|cancer|canes venatici|canis major|canis minor|capricornus|carina|cassiopeia|centaurus|cepheus|cetus|chamaeleon|circinus|columba|coma berenices|corona australis|corona borealis|corvus|crater|crux|cygnus|delphinus|dorado|draco|equuleus|eridanus|fornax|gemini|grus|hercules|horologium|hydra|hydrus|indus|lacerta|leo|leo minor|lepus|libra|lupus|lynx|lyra|mensa|microscopium|monoceros|musca|norma|octans|ophiuchus|orion|pavo|pegasus|perseus|phoenix|pictor|pisces|piscis austrinus|puppis|pyxis|reticulum|sagitta|sagittarius|scorpius|sculptor|scutum|serpens|sextans|taurus|telescopium|triangulum|triangulum australe|tucana|ursa major|ursa minor|vela|virgo|volans|vulpecula",
    "asteroids": "asteroid belt|main-belt=asteroid belt|main belt=asteroid belt|jupiter trojan|centaur|plutino|apollo asteroid|aten asteroid|amor asteroid|trans-neptunian object|cubewano|scattered disc object|kuiper belt|near-earth object",
    "ideologies": "socialism|communism|liberalism|conservatism|nationalism|social democracy|christian democracy|fascism|anarchism|libertarianism|populism|environmentalism|green politics|feminism|republicanism|federalism|marxism|marxism-leninism|progressivism|monarchism|regionalism|separatism|social liberalism|classical liberalism|liberal conservatism|national conservatism|democratic socialism|right-wing populism|left-wing populism|euroscepticism|pro-europeanism|nazism|agrarianism|secularism|irish republicanism|unionism|anti-communism|trotskyism|maoism|islamism|zionism|neoliberalism",
    "offices": "president|vice president|prime minister|minister|foreign minister|finance minister|mayor|governor|senator|member of parliament|chancellor|secretary of state|attorney general|ambassador|speaker|judge|chief justice|deputy prime minister|lieutenant governor|premier|secretary general|head of state|congressman|councillor|lord mayor|member of the european parliament|bishop|archbishop|pope|king|queen|emperor|first lady",
    "occupations": "actor|actress|singer|writer|poet|politician|footballer|swimmer|boxer|runner|sprinter|fencer|rower|cyclist|judoka|wrestler|professional wrestler|racing driver|bodybuilder|long jumper|high jumper|hammer thrower|javelin thrower|discus thrower|shot putter|middle-distance runner|long-distance runner|marathon runner|hurdler|pole vaulter|triple jumper|gymnast|figure skater|ski jumper|nordic combined skier|cross-country skier|alpine skier|skier|snowboarder|biathlete|tennis player|basketball player|baseball player|ice hockey player|volleyball player|handball player|chess player|golfer|cricketer|association football player|american football player|rugby player|decathlete|heptathlete|speed skater|canoeist|sailor|archer|weightlifter|athlete|athletics competitor|race walker|jockey|coach|kickboxer|sport shooter|diver|surfer|composer|painter|physicist|chemist|biologist|mathematician|astronomer|engineer|architect|lawyer|physician|journalist|historian|philosopher|economist|novelist|director|producer|musician|rapper|model|comedian|dancer|photographer|astronaut|soldier|teacher",
    "peoples": "african americans=African Americans|african american=African Americans|african-american=African Americans|african-americans=African Americans|goths=Goths|vandals=Vandals|métis=Métis|jews=Jews|jewish=Jews|armenians=Armenians|kurds=Kurds|kurdish=Kurds|romani=Romani people|tatars=Tatars|basques=Basques|tamils=Tamils|cherokee=Cherokee|navajo=Navajo|lakota=Lakota|sioux=Sioux|apache=Apache|inuit=Inuit|māori=Māori|maori=Māori|han chinese=Han Chinese|uyghurs=Uyghurs|pashtuns=Pashtuns|punjabis=Punjabis|zulu=Zulu|yoruba=Yoruba|igbo=Igbo|hausa=Hausa|berbers=Berbers|sami=Sámi|catalans=Catalans|franks=Franks|lombards=Lombards|saxons=Saxons|celts=Celts|gauls=Gauls|ojibwe=Ojibwe|cree=Cree|mohawk=Mohawk",
    "parties": "democratic party|republican party|labour party|conservative party|liberal party|green party|communist party|social democratic party|liberal democrats|socialist party|nazi party|indian national congress|bharatiya janata party|fianna fáil|fine gael|sinn féin|labour=labour party|democrat=democratic party|republican=republican party",
}  # fmt: skip


@functools.cache
def closed_list(name: str) -> dict[str, str]:
    """The words of a text in lower case -> the value as it is written; empty for no list."""
    if name in ("countries", "demonyms"):
        found: dict[str, str] = {}
        for item in _COUNTRIES.split():
            country, people = item.replace("_", " ").split(":")
            for word in filter(None, people.split(",")):
                found[word.casefold()] = country if name == "countries" else word
            if name == "countries":
                found[country.casefold()] = country
        return found
    pairs = [w.split("=") for w in _PLAIN.get(name, "").split("|") if w]
    return {p[0]: p[-1] for p in pairs}


def signs_of_name(name: str) -> dict[str, float]:
    """The signs that a property's own name gives: ``founded by`` is said by *found by*, ``editor`` by *X, the editor* and *edited by*."""
    words = re.findall(r"[\w'-]+", name.casefold())
    if not words or len(words) > 5:
        return {}
    found: dict[str, float] = {}
    if len(words) > 1 and words[0] in ("has", "is", "was"):
        words = words[1:]
    last, marks = words[-1], [i for i, w in enumerate(words) if w in _PREPOSITIONS]
    if marks and marks[-1] == len(words) - 1:  # founded by, capital of, located in
        before = words[-2] if len(words) > 1 else ""
        for lemma in dict.fromkeys((lemma_of(before, "VERB"), lemma_of(before, "NOUN"), before)):
            found[f"{lemma} {last}"] = 0.85
        if last == "by":
            found[f"{lemma_of(before, 'VERB')} <"] = 0.7
        return dict(sorted(found.items()))
    noun = words[marks[0] - 1] if marks and marks[0] else last  # place of birth, country of origin
    found |= _role(noun, 0.75) | {f"{noun} of": 0.7, f"have {noun}": 0.6}
    for ending in _AGENTS:
        if len(noun) > 5 and noun.endswith(ending):
            for verb in (noun[: -len(ending)], noun[: -len(ending)] + "e"):
                found |= _by(verb, 0.8)
    if len(words) == 1:
        found |= {f"{lemma_of(noun, 'VERB')} >": 0.6, f"{lemma_of(noun, 'VERB')} by": 0.6}
    return found


def speech_of(name: str) -> Speech:
    """How a property of a name is spoken of."""
    key = name.casefold().strip().replace("_", " ")
    known = {k.casefold(): v for k, v in SPEECH.items()}
    if key in known:
        return known[key]
    dates = bool(re.search(r"\b(?:date|time|year|inception|born|since)\b", key))
    return Speech(signs_of_name(key), dates=dates, phrase=True)
