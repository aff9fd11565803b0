"""The words of the demonstration's film reviews, and how much sentiment each carries.

Every opinion word has one score in [-1, 1]; the same scores shape the corpus (``corpus.reviews``) and
define the known reward (``corpus.sentiment``). No word appears under two scores: a test checks it.
"""

ADJECTIVES: dict[float, str] = {
    1.0: "superb magnificent stunning brilliant exquisite masterful dazzling sublime unforgettable flawless",
    0.7: "excellent wonderful gripping moving delightful impressive elegant captivating inventive touching "
    "compelling vivid",
    0.4: "good likeable charming pleasant engaging clever warm enjoyable funny graceful sincere lively witty",
    0.2: "decent fair watchable competent agreeable tidy passable respectable",
    -0.2: "uneven slight familiar predictable ordinary thin forgettable hesitant",
    -0.4: "dull weak slow bland clumsy shallow muddled flat tired stale timid wooden",
    -0.7: "boring tedious messy lifeless annoying incoherent hollow lazy dreary irritating pointless grating",
    -1.0: "awful terrible horrible atrocious abysmal unbearable insufferable disastrous appalling "
    "unwatchable",
}

VERBS: dict[float, str] = {
    1.0: "adored treasured cherished",
    0.7: "loved admired",
    0.4: "enjoyed liked appreciated",
    0.2: "accepted noticed",
    -0.2: "tolerated questioned",
    -0.4: "endured disliked",
    -0.7: "regretted resented",
    -1.0: "hated despised loathed",
}

NOUNS: dict[float, str] = {
    1.0: "masterpiece triumph wonder",
    0.7: "joy delight gem",
    0.4: "pleasure success treat",
    0.2: "diversion curiosity",
    -0.2: "puzzle compromise",
    -0.4: "misfire letdown",
    -0.7: "chore bore mess failure",
    -1.0: "disaster ordeal travesty insult",
}

ADVERBS: dict[float, str] = {
    1.0: "brilliantly beautifully magically",
    0.7: "wonderfully elegantly thrillingly",
    0.4: "gracefully nicely cleverly",
    0.2: "smoothly calmly",
    -0.2: "slowly vaguely",
    -0.4: "clumsily awkwardly blandly",
    -0.7: "poorly tediously lazily",
    -1.0: "dreadfully horribly disastrously",
}

# What a word does to the opinion word that follows it in the same clause.
SCALES: dict[str, float] = {
    "absolutely": 1.3,
    "deeply": 1.3,
    "truly": 1.3,
    "utterly": 1.3,
    "very": 1.2,
    "really": 1.2,
    "quite": 0.8,
    "rather": 0.8,
    "fairly": 0.7,
    "somewhat": 0.6,
    "slightly": 0.5,
    "not": -0.5,
    "never": -0.5,
    "hardly": -0.5,
}

# Neutral material: it carries no sentiment and keeps the next token open.
NEUTRAL: dict[str, str] = {
    "kind": "film|picture|drama|comedy|thriller|western|documentary|romance|mystery|musical|feature|debut|"
    "sequel|remake|adaptation|fable|satire|melodrama",
    "aspect": "plot|script|dialogue|direction|music|photography|editing|pacing|ending|opening|humour|"
    "lighting|casting|narration|final act|second half|sound design|camera work|love story|production",
    "aspects": "performances|costumes|songs|jokes|characters|action scenes|landscapes|flashbacks|sets|"
    "supporting roles|chase scenes|special effects|quiet moments|conversations",
    "name": "Aldous Brandt|Mira Castell|Ines Okafor|Tomas Varga|Lena Fairweather|Jonah Pell|Ruth Amari|"
    "Viktor Holm|Clara Dunmore|Samir Qadir|Hugo Lindqvist|Nora Beckett|Elias Thorne|Paula Reyes|"
    "Oscar Whitlow|Greta Maddox|Ivan Sorel|Judith Crane|Marcus Yates|Stella Noonan",
    "origin": "French|Danish|Korean|Mexican|Italian|Polish|Irish|Brazilian|Swedish|Turkish|Canadian|Indian",
    "trait": "long|short|quiet|modern|historical|animated|silent|rural|domestic|seasonal|low budget|"
    "late night",
    "hero": "retired detective|young pianist|country doctor|lonely baker|night nurse|train driver|widowed "
    "sailor|chess champion|small town teacher|lighthouse keeper|travelling salesman|former boxer|court clerk|"
    "taxi driver|botanist|radio host|tailor|translator|circus rider|bank clerk",
    "deed": "returns to the coast|loses a letter|inherits a farm|follows a stranger|opens a restaurant|"
    "learns to dance|crosses the desert|finds an old diary|buys a theatre|waits for a train|builds a boat|"
    "searches for a brother|forgets a name|leaves the city|keeps a secret|adopts a dog|repairs a clock|"
    "writes to the king|hides a painting|moves to the mountains",
    "place": "Lisbon|a harbour town|the mountains|a northern village|Montreal|an empty hotel|the suburbs|"
    "Vienna|a border station|the old quarter|a fishing port|Cairo|a boarding school|the desert",
    "era": "the twenties|the fifties|wartime|the near future|the last century|one summer|a single night|"
    "the sixties|the winter of a strike|the seventies",
    "occasion": "last night|on Sunday|with my sister|at the festival|on a long flight|with two friends|last "
    "week|in an empty theatre|with my parents|after work|on television|for the second time|at the museum",
    "audience": "my friends|the people around me|my sister|half the audience|my parents|the critics|the "
    "couple behind us|my neighbour|our whole row",
    "duration": "two hours|ninety minutes|three hours|an hour|the first hour|the last ten minutes",
    "thing": "city|weather|family|harbour|house|war|children|orchestra|garden|trial",
}
