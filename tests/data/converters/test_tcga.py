from nucsam_monai.data.converters.tcga import CLASSIC_PATIENTS, TEST_PATIENTS, patient_of, tissue_of


def test_tables_hold_the_published_images() -> None:
    assert len(CLASSIC_PATIENTS) == 30
    assert len(TEST_PATIENTS) == 14
    assert not set(CLASSIC_PATIENTS) & set(TEST_PATIENTS)


def test_patient_and_tissue_of_a_barcode() -> None:
    assert patient_of("TCGA-A7-A13E-01Z-00-DX1") == "TCGA-A7-A13E"
    assert tissue_of("TCGA-A7-A13E-01Z-00-DX1") == "breast"
    assert tissue_of("TCGA-HT-8564-01Z-00-DX1") == "brain"
    assert tissue_of("TCGA-XS-A8TJ-01Z-00-DX1") is None
