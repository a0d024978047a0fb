-- A registry of revision 0001 with three deltas of one base, as SQL so that it can be read.
BEGIN TRANSACTION;
CREATE TABLE base (
	"key" INTEGER NOT NULL,
	id VARCHAR(64) NOT NULL,
	model_type VARCHAR(20) NOT NULL,
	CONSTRAINT pk_base PRIMARY KEY ("key"),
	CONSTRAINT uq_base_id UNIQUE (id)
);
INSERT INTO "base" VALUES(1,'be5d53bd0ecbfc720bfc13cc637240bdfef7c2f06781f4b89ff861046e0b1e87','t2v');
CREATE TABLE base_expert (
	"key" INTEGER NOT NULL,
	base_key INTEGER NOT NULL,
	role VARCHAR(20) NOT NULL,
	bf16_root VARCHAR(64) NOT NULL,
	tensors INTEGER NOT NULL,
	CONSTRAINT pk_base_expert PRIMARY KEY ("key"),
	CONSTRAINT fk_base_expert_base_key_base FOREIGN KEY(base_key) REFERENCES base ("key") ON DELETE CASCADE,
	CONSTRAINT uq_base_expert_base_key_role UNIQUE (base_key, role)
);
INSERT INTO "base_expert" VALUES(1,1,'high_noise','71c60ba7e482366268b64e704343b4f42fd6658a7065dcf29f6fcaefc1e5681b',4);
INSERT INTO "base_expert" VALUES(2,1,'low_noise','4a57ca3c5dd8bc3381f3275c290519ef139f39555a03de5c2397096552cf8877',4);
CREATE TABLE calibration (
	"key" INTEGER NOT NULL,
	id VARCHAR(64) NOT NULL,
	CONSTRAINT pk_calibration PRIMARY KEY ("key"),
	CONSTRAINT uq_calibration_id UNIQUE (id)
);
INSERT INTO "calibration" VALUES(1,'7004b93e0699aa8a33089b96db15ef6b458d57d55e8ee9963d44fc37eac96dbe');
CREATE TABLE calibration_prompt (
	calibration_key INTEGER NOT NULL,
	position INTEGER NOT NULL,
	sha256 VARCHAR(64) NOT NULL,
	CONSTRAINT pk_calibration_prompt PRIMARY KEY (calibration_key, position),
	CONSTRAINT fk_calibration_prompt_calibration_key_calibration FOREIGN KEY(calibration_key) REFERENCES calibration ("key") ON DELETE CASCADE
)
 WITHOUT ROWID

;
INSERT INTO "calibration_prompt" VALUES(1,2,'259a648c7737779497c41b77a45b5f7449eaa5d7f36a96cb92e5341678c54f4c');
INSERT INTO "calibration_prompt" VALUES(1,0,'481d04be4cdbb88b5984fbcbfbe428ec5ab1043cc25e5b3a3d562d2e8e5623ba');
INSERT INTO "calibration_prompt" VALUES(1,1,'7e5b8ad56422e58bca8c8272a62ab32bb2721fc72d0a13e765a175c028432069');
CREATE TABLE delta (
	"key" INTEGER NOT NULL,
	id VARCHAR(64) NOT NULL,
	base_key INTEGER NOT NULL,
	recipe_key INTEGER NOT NULL,
	calibration_key INTEGER,
	state_sha256 VARCHAR(64) NOT NULL,
	state_size_bytes BIGINT NOT NULL,
	state_tensors INTEGER NOT NULL,
	quantized INTEGER NOT NULL,
	created VARCHAR(40) NOT NULL,
	registered_at VARCHAR(32) NOT NULL,
	CONSTRAINT pk_delta PRIMARY KEY ("key"),
	CONSTRAINT fk_delta_base_key_base FOREIGN KEY(base_key) REFERENCES base ("key"),
	CONSTRAINT fk_delta_recipe_key_recipe FOREIGN KEY(recipe_key) REFERENCES recipe ("key"),
	CONSTRAINT fk_delta_calibration_key_calibration FOREIGN KEY(calibration_key) REFERENCES calibration ("key"),
	CONSTRAINT uq_delta_id UNIQUE (id)
);
INSERT INTO "delta" VALUES(1,'06eb9eaf86d9463b10d21f20b4cad021b191f2a7416e7f806f1f7123d3e1764f',1,1,1,'4e7e7d656f5edae64a1f83b128d39162208e3fb42e3940b135f74ee2165090eb',232,1,2,'2026-03-01T12:00:00Z','2026-03-01T08:00:00.000000Z');
INSERT INTO "delta" VALUES(2,'5625098a7fd8600c57b8c3ab012aa91abe5926327100e5df5bec596481be9422',1,2,1,'bb51b53b46dcaaa0c293d84dac02732c625ae7661cd380e612b21809aef16af1',232,1,4,'2026-03-01T12:00:00Z','2026-03-02T08:00:00.000000Z');
INSERT INTO "delta" VALUES(3,'694471453f2c86056293bfc39042c846706f640c468fd3f6c8c35eace25fe3c9',1,3,NULL,'0a5492875f244f231f2ebc9480d71d1941acb8954b231ee407948b3160795b5c',232,1,6,'2026-03-01T12:00:00Z','2026-03-03T08:00:00.000000Z');
CREATE TABLE edge (
	child_id VARCHAR(64) NOT NULL,
	relation VARCHAR(30) NOT NULL,
	parent_id VARCHAR(64) NOT NULL,
	child_kind VARCHAR(20) NOT NULL,
	parent_kind VARCHAR(20) NOT NULL,
	CONSTRAINT pk_edge PRIMARY KEY (child_id, relation, parent_id)
)
 WITHOUT ROWID

;
INSERT INTO "edge" VALUES('06eb9eaf86d9463b10d21f20b4cad021b191f2a7416e7f806f1f7123d3e1764f','bound-to','be5d53bd0ecbfc720bfc13cc637240bdfef7c2f06781f4b89ff861046e0b1e87','delta','base');
INSERT INTO "edge" VALUES('06eb9eaf86d9463b10d21f20b4cad021b191f2a7416e7f806f1f7123d3e1764f','calibrated-by','7004b93e0699aa8a33089b96db15ef6b458d57d55e8ee9963d44fc37eac96dbe','delta','calibration');
INSERT INTO "edge" VALUES('06eb9eaf86d9463b10d21f20b4cad021b191f2a7416e7f806f1f7123d3e1764f','made-by','bd53e49dee46dacaea10776ef6c396fc93bd6f8e8501a9ce8d23d1e8976c40a1','delta','recipe');
INSERT INTO "edge" VALUES('5625098a7fd8600c57b8c3ab012aa91abe5926327100e5df5bec596481be9422','bound-to','be5d53bd0ecbfc720bfc13cc637240bdfef7c2f06781f4b89ff861046e0b1e87','delta','base');
INSERT INTO "edge" VALUES('5625098a7fd8600c57b8c3ab012aa91abe5926327100e5df5bec596481be9422','calibrated-by','7004b93e0699aa8a33089b96db15ef6b458d57d55e8ee9963d44fc37eac96dbe','delta','calibration');
INSERT INTO "edge" VALUES('5625098a7fd8600c57b8c3ab012aa91abe5926327100e5df5bec596481be9422','made-by','041f4e7e0f35ebbbd56728cad76547529f81c2562fd66547d4d3283fc5ee4ed2','delta','recipe');
INSERT INTO "edge" VALUES('694471453f2c86056293bfc39042c846706f640c468fd3f6c8c35eace25fe3c9','bound-to','be5d53bd0ecbfc720bfc13cc637240bdfef7c2f06781f4b89ff861046e0b1e87','delta','base');
INSERT INTO "edge" VALUES('694471453f2c86056293bfc39042c846706f640c468fd3f6c8c35eace25fe3c9','made-by','34f65556327a1f9d9a1e383d745d500b3e5a242787998ab3f2c2058f7d64153a','delta','recipe');
CREATE TABLE hfq_revision (
	version_num VARCHAR(32) NOT NULL,
	CONSTRAINT hfq_revision_pkc PRIMARY KEY (version_num)
);
INSERT INTO "hfq_revision" VALUES('0001');
CREATE TABLE kept_site (
	delta_key INTEGER NOT NULL,
	expert VARCHAR(20) NOT NULL,
	site VARCHAR(200) NOT NULL,
	reason VARCHAR(800) NOT NULL,
	CONSTRAINT pk_kept_site PRIMARY KEY (delta_key, expert, site),
	CONSTRAINT fk_kept_site_delta_key_delta FOREIGN KEY(delta_key) REFERENCES delta ("key") ON DELETE CASCADE
)
 WITHOUT ROWID

;
INSERT INTO "kept_site" VALUES(1,'high_noise','blocks.0.self_attn.q','rule 0: boundary');
INSERT INTO "kept_site" VALUES(1,'high_noise','blocks.1.self_attn.q','rule 0: boundary');
INSERT INTO "kept_site" VALUES(1,'high_noise','blocks.2.self_attn.q','rule 0: boundary');
INSERT INTO "kept_site" VALUES(1,'low_noise','blocks.0.self_attn.q','rule 0: boundary');
INSERT INTO "kept_site" VALUES(1,'low_noise','blocks.1.self_attn.q','rule 0: boundary');
INSERT INTO "kept_site" VALUES(1,'low_noise','blocks.2.self_attn.q','rule 0: boundary');
INSERT INTO "kept_site" VALUES(2,'high_noise','blocks.0.self_attn.q','rule 0: boundary');
INSERT INTO "kept_site" VALUES(2,'high_noise','blocks.1.self_attn.q','rule 0: boundary');
INSERT INTO "kept_site" VALUES(2,'low_noise','blocks.0.self_attn.q','rule 0: boundary');
INSERT INTO "kept_site" VALUES(2,'low_noise','blocks.1.self_attn.q','rule 0: boundary');
CREATE TABLE location (
	"key" INTEGER NOT NULL,
	delta_key INTEGER NOT NULL,
	folder TEXT NOT NULL,
	created VARCHAR(40) NOT NULL,
	registered_at VARCHAR(32) NOT NULL,
	CONSTRAINT pk_location PRIMARY KEY ("key"),
	CONSTRAINT fk_location_delta_key_delta FOREIGN KEY(delta_key) REFERENCES delta ("key") ON DELETE CASCADE,
	CONSTRAINT uq_location_folder UNIQUE (folder)
);
INSERT INTO "location" VALUES(1,1,'/deltas/old-1','2026-03-01T12:00:00Z','2026-03-01T08:00:00.000000Z');
INSERT INTO "location" VALUES(2,2,'/deltas/old-2','2026-03-01T12:00:00Z','2026-03-02T08:00:00.000000Z');
INSERT INTO "location" VALUES(3,3,'/deltas/old-3','2026-03-01T12:00:00Z','2026-03-03T08:00:00.000000Z');
CREATE TABLE recipe (
	"key" INTEGER NOT NULL,
	id VARCHAR(64) NOT NULL,
	name VARCHAR(80) NOT NULL,
	weight_format VARCHAR(20) NOT NULL,
	activation_format VARCHAR(20) NOT NULL,
	document TEXT NOT NULL,
	CONSTRAINT pk_recipe PRIMARY KEY ("key"),
	CONSTRAINT uq_recipe_id UNIQUE (id)
);
INSERT INTO "recipe" VALUES(1,'bd53e49dee46dacaea10776ef6c396fc93bd6f8e8501a9ce8d23d1e8976c40a1','tail-aware-hif4','hif4','hif4','{"activation":{"format":"hif4","profile":"ref"},"description":"made for a test","name":"tail-aware-hif4","route":[{"match":["head.*"],"reason":"boundary","to":"keep"},{"match":["*"],"to":"quantize"}],"schema":"hfq.recipe/1","stage":[{"activation_floor":0.00001,"alpha":0.5,"kind":"smooth","mask_max":1000,"mask_min":0.001,"percentile":99.9,"statistic":"percentile","weight_floor":0.00001}],"weight":{"format":"hif4","profile":"ref","scale_search":false}}');
INSERT INTO "recipe" VALUES(2,'041f4e7e0f35ebbbd56728cad76547529f81c2562fd66547d4d3283fc5ee4ed2','tail-aware-hif4','hif4','hif4','{"activation":{"format":"hif4","profile":"ref"},"description":"made for a test","name":"tail-aware-hif4","route":[{"match":["head.*"],"reason":"boundary","to":"keep"},{"match":["*"],"to":"quantize"}],"schema":"hfq.recipe/1","stage":[{"activation_floor":0.00001,"alpha":0.5,"kind":"smooth","mask_max":1000,"mask_min":0.001,"percentile":99,"statistic":"percentile","weight_floor":0.00001}],"weight":{"format":"hif4","profile":"ref","scale_search":false}}');
INSERT INTO "recipe" VALUES(3,'34f65556327a1f9d9a1e383d745d500b3e5a242787998ab3f2c2058f7d64153a','plain-max','hif4','hif4','{"activation":{"format":"hif4","profile":"ref"},"description":"made for a test","name":"plain-max","route":[{"match":["head.*"],"reason":"boundary","to":"keep"},{"match":["*"],"to":"quantize"}],"schema":"hfq.recipe/1","stage":[{"activation_floor":0.00001,"alpha":0.5,"kind":"smooth","mask_max":1000,"mask_min":0.001,"statistic":"max","weight_floor":0.00001}],"weight":{"format":"hif4","profile":"ref","scale_search":false}}');
CREATE TABLE witness (
	"key" INTEGER NOT NULL,
	expert_key INTEGER NOT NULL,
	layout VARCHAR(1000) NOT NULL,
	exact_root VARCHAR(64) NOT NULL,
	name VARCHAR(1000) NOT NULL,
	size_bytes BIGINT NOT NULL,
	sha256 VARCHAR(64) NOT NULL,
	trusted BOOLEAN NOT NULL,
	CONSTRAINT pk_witness PRIMARY KEY ("key"),
	CONSTRAINT fk_witness_expert_key_base_expert FOREIGN KEY(expert_key) REFERENCES base_expert ("key") ON DELETE CASCADE,
	CONSTRAINT uq_witness_expert_key_sha256_name_layout_exact_root UNIQUE (expert_key, sha256, name, layout, exact_root)
);
INSERT INTO "witness" VALUES(1,1,'wan22','fcd8253ca78c1eccd48e5d6930f1b0b18a28d7bf49559960cb20e5c0e7fb9f1a','high_noise_model/m.safetensors',57000000000,'9530f5e804f32f0155b2e9bed09837aba85f8ca2c411b61ac56363b1aa125898',0);
INSERT INTO "witness" VALUES(2,2,'wan22','41fa0f52833fcfa3240b352bf0115d6935daf72b055dee085d5d96adf5a9f062','low_noise_model/m.safetensors',57000000000,'2c1d4f31d6b520ec6d4da7330715db46905b06dc688da1153178f66730c0d6e9',0);
CREATE INDEX ix_base_expert_bf16_root ON base_expert (bf16_root);
CREATE INDEX ix_witness_sha256 ON witness (sha256);
CREATE INDEX ix_calibration_prompt_sha256 ON calibration_prompt (sha256);
CREATE INDEX ix_recipe_name ON recipe (name);
CREATE INDEX ix_delta_base_key ON delta (base_key);
CREATE INDEX ix_delta_recipe_key ON delta (recipe_key);
CREATE INDEX ix_delta_calibration_key ON delta (calibration_key);
CREATE INDEX ix_kept_site_site ON kept_site (site);
CREATE INDEX ix_edge_parent_id ON edge (parent_id);
CREATE INDEX ix_location_delta_key ON location (delta_key);
COMMIT;
