"""Sentences of an instruction data set in 31 languages, ten each, written for the tests of language detection."""

SENTENCES = {
    "en": """\
Please send me a short summary of the meeting before tomorrow morning.
The library closes at six on weekdays and at noon on Saturdays.
Water boils at a lower temperature when you climb a mountain.
How do I change the battery of this bicycle light?
My sister bought three old chairs at the flea market.
Add the flour slowly and stir until the dough is smooth.
We could not find your order under that number.
Most plants need light, water and a little patience.
The train was late, so we missed the first half of the concert.
Write a friendly reply to a customer who lost his receipt.""",
    "de": """\
Bitte schicken Sie mir vor morgen früh eine kurze Zusammenfassung der Sitzung.
Die Bücherei schließt werktags um sechs und samstags um zwölf.
Wasser kocht auf einem Berg schon bei niedrigerer Temperatur.
Wie wechsle ich die Batterie dieser Fahrradlampe?
Meine Schwester hat auf dem Flohmarkt drei alte Stühle gekauft.
Gib das Mehl langsam dazu und rühre, bis der Teig glatt ist.
Unter dieser Nummer konnten wir Ihre Bestellung nicht finden.
Die meisten Pflanzen brauchen Licht, Wasser und etwas Geduld.
Der Zug hatte Verspätung, deshalb verpassten wir den Anfang.
Schreibe eine freundliche Antwort an einen Kunden ohne Quittung.""",
    "fr": """\
Envoyez-moi un court résumé de la réunion avant demain matin.
La bibliothèque ferme à six heures en semaine et à midi le samedi.
L'eau bout à une température plus basse en haute montagne.
Comment changer la pile de cette lampe de vélo ?
Ma sœur a acheté trois vieilles chaises au marché aux puces.
Ajoutez la farine lentement et remuez jusqu'à obtenir une pâte lisse.
Nous n'avons pas trouvé votre commande sous ce numéro.
La plupart des plantes ont besoin de lumière, d'eau et de patience.
Le train était en retard et nous avons manqué le début du concert.
Rédige une réponse aimable à un client qui a perdu son reçu.""",
    "es": """\
Envíeme un breve resumen de la reunión antes de mañana por la mañana.
La biblioteca cierra a las seis entre semana y al mediodía los sábados.
El agua hierve a menor temperatura cuando subes a una montaña.
¿Cómo cambio la pila de esta luz de bicicleta?
Mi hermana compró tres sillas viejas en el mercadillo.
Añade la harina despacio y remueve hasta que la masa quede lisa.
No hemos encontrado su pedido con ese número.
Casi todas las plantas necesitan luz, agua y algo de paciencia.
El tren llegó tarde y nos perdimos la primera parte del concierto.
Escribe una respuesta amable a un cliente que perdió su recibo.""",
    "pt": """\
Envie-me um breve resumo da reunião antes de amanhã de manhã.
A biblioteca fecha às seis nos dias úteis e ao meio-dia aos sábados.
A água ferve a uma temperatura mais baixa no alto da montanha.
Como troco a pilha desta luz de bicicleta?
Minha irmã comprou três cadeiras velhas na feira.
Junte a farinha devagar e mexa até a massa ficar lisa.
Não encontramos o seu pedido com esse número.
A maioria das plantas precisa de luz, água e um pouco de paciência.
O trem atrasou e perdemos a primeira parte do concerto.
Escreva uma resposta simpática a um cliente que perdeu o recibo.""",
    "it": """\
Mandami un breve riassunto della riunione prima di domani mattina.
La biblioteca chiude alle sei nei giorni feriali e a mezzogiorno il sabato.
L'acqua bolle a una temperatura più bassa quando sali in montagna.
Come si cambia la batteria di questa luce da bicicletta?
Mia sorella ha comprato tre vecchie sedie al mercatino.
Aggiungi la farina lentamente e mescola finché l'impasto è liscio.
Non abbiamo trovato il suo ordine con questo numero.
Quasi tutte le piante hanno bisogno di luce, acqua e un po' di pazienza.
Il treno era in ritardo e abbiamo perso l'inizio del concerto.
Scrivi una risposta gentile a un cliente che ha perso lo scontrino.""",
    "nl": """\
Stuur me voor morgenochtend een korte samenvatting van de vergadering.
De bibliotheek sluit door de week om zes uur en zaterdag om twaalf uur.
Water kookt bij een lagere temperatuur als je een berg beklimt.
Hoe vervang ik de batterij van dit fietslampje?
Mijn zus kocht drie oude stoelen op de rommelmarkt.
Voeg de bloem langzaam toe en roer tot het deeg glad is.
We konden uw bestelling onder dat nummer niet vinden.
De meeste planten hebben licht, water en wat geduld nodig.
De trein had vertraging, dus we misten het begin van het concert.
Schrijf een vriendelijk antwoord aan een klant die zijn bon kwijt is.""",
    "sv": """\
Skicka mig en kort sammanfattning av mötet före i morgon bitti.
Biblioteket stänger klockan sex på vardagar och tolv på lördagar.
Vatten kokar vid lägre temperatur när man bestiger ett berg.
Hur byter jag batteri i den här cykellampan?
Min syster köpte tre gamla stolar på loppmarknaden.
Tillsätt mjölet långsamt och rör tills degen är slät.
Vi kunde inte hitta din beställning under det numret.
De flesta växter behöver ljus, vatten och lite tålamod.
Tåget var försenat, så vi missade början av konserten.
Skriv ett vänligt svar till en kund som har tappat sitt kvitto.""",
    "da": """\
Send mig venligst et kort referat af mødet inden i morgen tidlig.
Biblioteket lukker klokken seks på hverdage og klokken tolv om lørdagen.
Vand koger ved en lavere temperatur, når man bestiger et bjerg.
Hvordan skifter jeg batteriet i denne cykellygte?
Min søster købte tre gamle stole på loppemarkedet.
Tilsæt melet langsomt, og rør, indtil dejen er glat.
Vi kunne ikke finde din bestilling under det nummer.
De fleste planter har brug for lys, vand og lidt tålmodighed.
Toget var forsinket, så vi gik glip af begyndelsen af koncerten.
Skriv et venligt svar til en kunde, der har mistet sin kvittering.""",
    "no": """\
Send meg et kort sammendrag av møtet før i morgen tidlig.
Biblioteket stenger klokken seks på hverdager og tolv på lørdager.
Vann koker ved lavere temperatur når du klatrer opp på et fjell.
Hvordan bytter jeg batteriet i denne sykkellykten?
Søsteren min kjøpte tre gamle stoler på loppemarkedet.
Tilsett melet sakte og rør til deigen er jevn.
Vi kunne ikke finne bestillingen din under det nummeret.
De fleste planter trenger lys, vann og litt tålmodighet.
Toget var forsinket, så vi gikk glipp av begynnelsen av konserten.
Skriv et vennlig svar til en kunde som har mistet kvitteringen sin.""",
    "fi": """\
Lähetä minulle lyhyt yhteenveto kokouksesta ennen huomisaamua.
Kirjasto suljetaan arkisin kello kuusi ja lauantaisin kello kaksitoista.
Vesi kiehuu alemmassa lämpötilassa, kun kiipeät vuorelle.
Miten vaihdan tämän polkupyörän valon pariston?
Sisareni osti kolme vanhaa tuolia kirpputorilta.
Lisää jauhot hitaasti ja sekoita, kunnes taikina on sileää.
Emme löytäneet tilaustasi tällä numerolla.
Useimmat kasvit tarvitsevat valoa, vettä ja vähän kärsivällisyyttä.
Juna oli myöhässä, joten emme ehtineet konsertin alkuun.
Kirjoita ystävällinen vastaus asiakkaalle, joka hukkasi kuittinsa.""",
    "pl": """\
Wyślij mi krótkie podsumowanie spotkania do jutra rana.
Biblioteka jest zamykana o szóstej w dni powszednie i w południe w soboty.
Woda wrze w niższej temperaturze wysoko w górach.
Jak wymienić baterię w tej lampce rowerowej?
Moja siostra kupiła trzy stare krzesła na pchlim targu.
Dodawaj mąkę powoli i mieszaj, aż ciasto będzie gładkie.
Nie znaleźliśmy zamówienia o tym numerze.
Większość roślin potrzebuje światła, wody i cierpliwości.
Pociąg się spóźnił i straciliśmy początek koncertu.
Napisz uprzejmą odpowiedź klientowi, który zgubił paragon.""",
    "cs": """\
Pošlete mi prosím do zítřejšího rána krátké shrnutí schůzky.
Knihovna zavírá ve všední dny v šest a v sobotu v poledne.
Voda vře při nižší teplotě, když vystoupáte na horu.
Jak vyměním baterii v tomto světle na kolo?
Moje sestra koupila na bleším trhu tři staré židle.
Přidávejte mouku pomalu a míchejte, dokud není těsto hladké.
Vaši objednávku jsme pod tímto číslem nenašli.
Většina rostlin potřebuje světlo, vodu a trochu trpělivosti.
Vlak měl zpoždění, takže jsme zmeškali začátek koncertu.
Napište přátelskou odpověď zákazníkovi, který ztratil účtenku.""",
    "hu": """\
Kérem, küldjön egy rövid összefoglalót a megbeszélésről holnap reggelig.
A könyvtár hétköznap hatkor, szombaton délben zár.
A víz alacsonyabb hőmérsékleten forr fent a hegyen.
Hogyan cserélem ki az elemet ebben a kerékpárlámpában?
A nővérem három régi széket vett a bolhapiacon.
Lassan add hozzá a lisztet, és keverd, amíg a tészta sima lesz.
Ezen a számon nem találtuk a rendelését.
A legtöbb növénynek fényre, vízre és némi türelemre van szüksége.
A vonat késett, ezért lemaradtunk a koncert elejéről.
Írj barátságos választ egy vevőnek, aki elvesztette a nyugtáját.""",
    "ro": """\
Trimiteți-mi un scurt rezumat al ședinței până mâine dimineață.
Biblioteca se închide la șase în timpul săptămânii și la prânz sâmbăta.
Apa fierbe la o temperatură mai mică atunci când urci pe munte.
Cum schimb bateria acestei lumini de bicicletă?
Sora mea a cumpărat trei scaune vechi de la târg.
Adaugă făina încet și amestecă până când aluatul este fin.
Nu am găsit comanda dumneavoastră cu acest număr.
Cele mai multe plante au nevoie de lumină, apă și puțină răbdare.
Trenul a întârziat, așa că am pierdut începutul concertului.
Scrie un răspuns prietenos unui client care și-a pierdut bonul.""",
    "bg": """\
Изпратете ми кратко обобщение на срещата до утре сутринта.
Библиотеката затваря в шест часа през седмицата и на обяд в събота.
Водата кипи при по-ниска температура, когато се качите на планина.
Как да сменя батерията на тази лампа за велосипед?
Сестра ми купи три стари стола от битпазара.
Добавете брашното бавно и бъркайте, докато тестото стане гладко.
Не успяхме да намерим поръчката ви под този номер.
Повечето растения се нуждаят от светлина, вода и малко търпение.
Влакът закъсня и изпуснахме началото на концерта.
Напишете любезен отговор на клиент, който е загубил бележката си.""",
    "sr": """\
Пошаљите ми кратак преглед састанка до сутра ујутру.
Библиотека се радним данима затвара у шест, а суботом у подне.
Вода кључа на нижој температури када се попнете на планину.
Како да заменим батерију на овом светлу за бицикл?
Моја сестра је купила три старе столице на бувљој пијаци.
Додајте брашно полако и мешајте док тесто не постане глатко.
Нисмо пронашли вашу поруџбину под тим бројем.
Већини биљака требају светлост, вода и мало стрпљења.
Воз је каснио, па смо пропустили почетак концерта.
Напишите љубазан одговор купцу који је изгубио рачун.""",
    "uk": """\
Надішліть мені короткий підсумок зустрічі до завтрашнього ранку.
Бібліотека зачиняється о шостій у будні та опівдні в суботу.
Вода кипить за нижчої температури, коли піднімаєшся на гору.
Як замінити батарейку в цьому велосипедному ліхтарі?
Моя сестра купила три старі стільці на блошиному ринку.
Повільно додайте борошно й мішайте, доки тісто не стане гладким.
Ми не знайшли вашого замовлення за цим номером.
Більшості рослин потрібні світло, вода і трохи терпіння.
Потяг запізнився, тому ми пропустили початок концерту.
Напишіть дружню відповідь клієнтові, який загубив чек.""",
    "ru": """\
Пришлите мне краткое изложение встречи до завтрашнего утра.
Библиотека закрывается в шесть по будням и в полдень по субботам.
Вода кипит при более низкой температуре высоко в горах.
Как заменить батарейку в этом велосипедном фонаре?
Моя сестра купила три старых стула на блошином рынке.
Медленно добавьте муку и мешайте, пока тесто не станет гладким.
Мы не нашли ваш заказ под этим номером.
Большинству растений нужны свет, вода и немного терпения.
Поезд опоздал, поэтому мы пропустили начало концерта.
Напишите дружелюбный ответ клиенту, который потерял чек.""",
    "tr": """\
Lütfen yarın sabaha kadar bana toplantının kısa bir özetini gönderin.
Kütüphane hafta içi saat altıda, cumartesi günleri öğlen kapanır.
Dağa çıktıkça su daha düşük sıcaklıkta kaynar.
Bu bisiklet lambasının pilini nasıl değiştiririm?
Kız kardeşim bit pazarından üç eski sandalye aldı.
Unu yavaşça ekleyin ve hamur pürüzsüz olana kadar karıştırın.
Bu numarayla siparişinizi bulamadık.
Çoğu bitkinin ışığa, suya ve biraz sabra ihtiyacı vardır.
Tren geç kaldı, bu yüzden konserin başını kaçırdık.
Fişini kaybeden bir müşteriye nazik bir yanıt yaz.""",
    "id": """\
Tolong kirimkan ringkasan singkat rapat itu sebelum besok pagi.
Perpustakaan tutup pukul enam pada hari kerja dan tengah hari pada hari Sabtu.
Air mendidih pada suhu yang lebih rendah ketika Anda mendaki gunung.
Bagaimana cara mengganti baterai lampu sepeda ini?
Kakak perempuan saya membeli tiga kursi tua di pasar loak.
Tambahkan tepung perlahan dan aduk sampai adonan halus.
Kami tidak dapat menemukan pesanan Anda dengan nomor itu.
Kebanyakan tanaman membutuhkan cahaya, air, dan sedikit kesabaran.
Kereta terlambat, sehingga kami melewatkan awal konser.
Tulislah jawaban yang ramah kepada pelanggan yang kehilangan struknya.""",
    "vi": """\
Vui lòng gửi cho tôi bản tóm tắt ngắn của cuộc họp trước sáng mai.
Thư viện đóng cửa lúc sáu giờ vào ngày thường và buổi trưa thứ bảy.
Nước sôi ở nhiệt độ thấp hơn khi bạn leo lên núi.
Làm thế nào để thay pin cho đèn xe đạp này?
Chị tôi đã mua ba chiếc ghế cũ ở chợ trời.
Cho bột mì vào từ từ và khuấy cho đến khi bột mịn.
Chúng tôi không tìm thấy đơn hàng của bạn với số đó.
Hầu hết cây cối cần ánh sáng, nước và một chút kiên nhẫn.
Tàu đến muộn nên chúng tôi đã lỡ phần đầu buổi hòa nhạc.
Hãy viết câu trả lời thân thiện cho khách hàng bị mất hóa đơn.""",
    "ar": """\
من فضلك أرسل لي ملخصًا قصيرًا للاجتماع قبل صباح الغد.
تغلق المكتبة في السادسة أيام الأسبوع وعند الظهر يوم السبت.
يغلي الماء عند درجة حرارة أقل عندما تصعد الجبل.
كيف أغير بطارية مصباح الدراجة هذا؟
اشترت أختي ثلاثة كراس قديمة من السوق.
أضف الدقيق ببطء وحرك حتى يصبح العجين ناعمًا.
لم نتمكن من العثور على طلبك بهذا الرقم.
تحتاج معظم النباتات إلى الضوء والماء وقليل من الصبر.
تأخر القطار ففاتنا الجزء الأول من الحفل.
اكتب ردًا لطيفًا على زبون فقد إيصاله.""",
    "fa": """\
لطفاً تا فردا صبح خلاصه‌ای کوتاه از جلسه برایم بفرستید.
کتابخانه در روزهای هفته ساعت شش و شنبه‌ها ظهر بسته می‌شود.
وقتی از کوه بالا می‌روید آب در دمای کمتری می‌جوشد.
چگونه باتری این چراغ دوچرخه را عوض کنم؟
خواهرم سه صندلی کهنه از بازار خرید.
آرد را آرام اضافه کنید و هم بزنید تا خمیر صاف شود.
ما سفارش شما را با این شماره پیدا نکردیم.
بیشتر گیاهان به نور، آب و کمی صبر نیاز دارند.
قطار دیر رسید و ما آغاز کنسرت را از دست دادیم.
پاسخی دوستانه به مشتری‌ای بنویس که رسیدش را گم کرده است.""",
    "he": """\
נא לשלוח לי סיכום קצר של הפגישה לפני מחר בבוקר.
הספרייה נסגרת בשש בימי חול ובצהריים בימי שישי.
מים רותחים בטמפרטורה נמוכה יותר כשמטפסים על הר.
איך מחליפים את הסוללה בפנס האופניים הזה?
אחותי קנתה שלושה כיסאות ישנים בשוק הפשפשים.
הוסיפו את הקמח לאט וערבבו עד שהבצק חלק.
לא מצאנו את ההזמנה שלך לפי המספר הזה.
רוב הצמחים זקוקים לאור, למים ולמעט סבלנות.
הרכבת איחרה ולכן הפסדנו את תחילת הקונצרט.
כתוב תשובה ידידותית ללקוח שאיבד את הקבלה.""",
    "el": """\
Στείλτε μου μια σύντομη περίληψη της συνάντησης πριν από αύριο το πρωί.
Η βιβλιοθήκη κλείνει στις έξι τις καθημερινές και το μεσημέρι τα Σάββατα.
Το νερό βράζει σε χαμηλότερη θερμοκρασία όταν ανεβαίνεις στο βουνό.
Πώς αλλάζω την μπαταρία σε αυτό το φως ποδηλάτου;
Η αδερφή μου αγόρασε τρεις παλιές καρέκλες στο παζάρι.
Προσθέστε το αλεύρι αργά και ανακατέψτε μέχρι να γίνει λεία η ζύμη.
Δεν βρήκαμε την παραγγελία σας με αυτόν τον αριθμό.
Τα περισσότερα φυτά χρειάζονται φως, νερό και λίγη υπομονή.
Το τρένο άργησε και χάσαμε την αρχή της συναυλίας.
Γράψε μια φιλική απάντηση σε έναν πελάτη που έχασε την απόδειξή του.""",
    "hi": """\
कृपया कल सुबह से पहले मुझे बैठक का छोटा सारांश भेजें।
पुस्तकालय सप्ताह के दिनों में छह बजे और शनिवार को दोपहर में बंद होता है।
पहाड़ पर चढ़ने पर पानी कम तापमान पर उबलता है।
मैं इस साइकिल की बत्ती की बैटरी कैसे बदलूँ?
मेरी बहन ने बाज़ार से तीन पुरानी कुर्सियाँ खरीदीं।
आटा धीरे-धीरे डालें और तब तक मिलाएँ जब तक वह चिकना न हो जाए।
हमें उस नंबर से आपका ऑर्डर नहीं मिला।
ज़्यादातर पौधों को रोशनी, पानी और थोड़े धैर्य की ज़रूरत होती है।
ट्रेन देर से आई, इसलिए हम संगीत कार्यक्रम की शुरुआत नहीं देख पाए।
एक ऐसे ग्राहक को विनम्र उत्तर लिखें जिसकी रसीद खो गई है।""",
    "ja": """\
明日の朝までに会議の短い要約を送ってください。
図書館は平日は六時に、土曜日は正午に閉まります。
山に登ると、水はより低い温度で沸騰します。
この自転車のライトの電池はどうやって交換しますか。
姉は蚤の市で古い椅子を三脚買いました。
小麦粉をゆっくり加え、生地が滑らかになるまで混ぜます。
その番号のご注文は見つかりませんでした。
ほとんどの植物には光と水と少しの忍耐が必要です。
電車が遅れたので、コンサートの初めを聞き逃しました。
レシートをなくしたお客様に親切な返事を書いてください。""",
    "zh": """\
请在明天早上之前把会议的简短总结发给我。
图书馆平日六点关门，星期六中午关门。
爬上高山时，水在较低的温度下就会沸腾。
这个自行车灯的电池怎么更换？
我姐姐在跳蚤市场买了三把旧椅子。
慢慢加入面粉，搅拌到面团光滑为止。
我们没有找到这个号码的订单。
大多数植物需要阳光、水和一点耐心。
火车晚点了，所以我们错过了音乐会的开头。
给一位丢了收据的顾客写一封友好的回信。""",
    "ko": """\
내일 아침까지 회의의 짧은 요약을 보내 주세요.
도서관은 평일에는 여섯 시에, 토요일에는 정오에 닫습니다.
산에 올라가면 물은 더 낮은 온도에서 끓습니다.
이 자전거 등의 건전지는 어떻게 바꾸나요?
언니는 벼룩시장에서 낡은 의자 세 개를 샀습니다.
밀가루를 천천히 넣고 반죽이 매끄러워질 때까지 저으세요.
그 번호로는 주문을 찾을 수 없었습니다.
대부분의 식물에는 빛과 물과 약간의 인내심이 필요합니다.
기차가 늦어서 음악회의 앞부분을 놓쳤습니다.
영수증을 잃어버린 고객에게 친절한 답장을 쓰세요.""",
    "th": """\
กรุณาส่งบทสรุปสั้น ๆ ของการประชุมให้ฉันก่อนพรุ่งนี้เช้า
ห้องสมุดปิดเวลาหกโมงเย็นในวันธรรมดาและเที่ยงวันในวันเสาร์
น้ำเดือดที่อุณหภูมิต่ำลงเมื่อคุณปีนขึ้นภูเขา
ฉันจะเปลี่ยนแบตเตอรี่ของไฟจักรยานนี้ได้อย่างไร
พี่สาวของฉันซื้อเก้าอี้เก่าสามตัวที่ตลาดนัด
ค่อย ๆ ใส่แป้งแล้วคนจนแป้งเนียน
เราไม่พบคำสั่งซื้อของคุณจากหมายเลขนั้น
พืชส่วนใหญ่ต้องการแสง น้ำ และความอดทนเล็กน้อย
รถไฟมาช้า เราจึงพลาดช่วงแรกของคอนเสิร์ต
เขียนคำตอบที่เป็นมิตรถึงลูกค้าที่ทำใบเสร็จหาย""",
}
"""ISO 639-1 code -> ten lines, the same ten sentences in each language."""

WITHOUT_LANGUAGE = (
    "42",
    "3.14159, 2.71828, 1.41421",
    "def f(x):\n    return x ** 2 + 1",
    "for (int i = 0; i < n; i++) { s += a[i]; }",
    "x = [1, 2, 3]\ny = sum(x)",
    '{"a": 1, "b": [2, 3]}',
    '<div class="x"><a href="#">1</a></div>',
    "SELECT id, x FROM t WHERE x > 3",
    "https://example.org/a/b?c=1",
    "a^2 + b^2 = c^2",
    "O(n log n)",
    "2024-05-01 12:00",
    "🙂",
    "?",
    "OK",
)
"""Numbers, code and texts that are too short to tell."""
