
	/host:CPU
ŒTask Environment*profile_stop_time*profile_options*profile_start_time2ÛÇá†×Ïö2šÉä†×Ïö22(8"vm