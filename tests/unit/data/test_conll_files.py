"""Files with a word on each line: CoNLL and CoNLL-U."""

import pytest

import hf_sft

CONLL = "-DOCSTART- -X- O O\n\nAnn NNP B-NP B-PER\nleft VBD B-VP O\n. . O O\n\n\nShe PRP B-NP O\nleft VBD B-VP O\n"

CONLLU = (
    "# sent_id = 1\n# text = can't go\n1-2\tcan't\t_\t_\t_\t_\t_\t_\t_\t_\n1\tca\tcan\tAUX\t_\t_\t3\taux\t_\t_\n"
    "2\tn't\tnot\tPART\t_\t_\t3\tadvmod\t_\t_\n3\tgo\tgo\tVERB\t_\t_\t0\troot\t_\t_\n"
)


@pytest.mark.parametrize("name", ["a.conll", "a.txt", "a.iob", "a.conll.gz"])
def test_files_with_a_word_on_each_line_are_read(name, tmp_path):
    import gzip

    from hf_sft.data.data_source import DataSource
    from hf_sft.data.sources import load_source

    content = CONLL.encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    source = {"dataset": "conll", "data_files": str(tmp_path / name)} if name == "a.txt" else {"dataset": str(tmp_path / name)}
    rows = load_source(DataSource(**source), ("words",))[0]["train"]
    assert rows["words"][:] == [["Ann", "left", "."], ["She", "left"]]
    assert rows["tags"][:] == [["B-PER", "O", "O"], ["O", "O"]] and rows["column_2"][0] == ["NNP", "VBD", "."]


def test_conll_u_has_its_own_columns_and_no_ranges(tmp_path):
    from hf_sft.data.data_source import DataSource
    from hf_sft.data.sources import load_source

    (tmp_path / "a.conllu").write_text(CONLLU)
    rows = load_source(DataSource(dataset=str(tmp_path / "a.conllu")), ("words",))[0]["train"]
    assert rows[0]["words"] == ["ca", "n't", "go"] and rows[0]["tags"] == ["AUX", "PART", "VERB"]
    assert rows[0]["deprel"] == ["aux", "advmod", "root"]


def test_a_line_with_another_number_of_columns_is_named(tmp_path):
    from hf_sft.data.data_source import DataSource
    from hf_sft.data.sources import load_source

    (tmp_path / "a.conll").write_text("Ann B-PER\nleft\n")
    with pytest.raises(hf_sft.DataError, match=r"a\.conll`, line 2: 1 columns .'left'.\.\n.*as in .*line 1: 2"):
        load_source(DataSource(dataset=str(tmp_path / "a.conll")), ("words",))
