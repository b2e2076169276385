from fresh import clean as clean  # an autouse fixture
