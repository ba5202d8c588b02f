"""What a bone's surface says: endplates, pedicles, facets, canal, sacrum, femoral heads."""
